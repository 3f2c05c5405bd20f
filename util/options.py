"""The options that several systems share, typed and grouped in code, flat on the command line.

Names are those of the published systems' flags. ``util.config`` turns these groups, and those of single systems in
``util.system_options``, into a parser.
"""

from __future__ import annotations

from dataclasses import dataclass

from util.option import option


@dataclass
class RunOptions:
    """What to do and where."""

    system: str = option(
        "cld", "published system", choices=("cld", "ddpm", "hsivi", "idode", "indm", "scoreflow")
    )
    mode: str = option(
        "train", "train a model, continue a training run, evaluate a snapshot, draw samples from one, or train a "
        "dequantizer for one (scoreflow)",
        choices=("train", "continue", "eval", "sample", "train_deq"), defines_run=False,
    )  # fmt: skip
    root: str = option(".", "folder that relative workdir and data_location paths start from", defines_run=False)
    workdir: str = option("", "folder of the run: configuration, snapshots, logs, samples", defines_run=False)
    overwrite: bool = option(False, "with --mode train: delete an earlier run in workdir", defines_run=False)
    checkpoint: str = option(
        "", "with --mode continue: file in workdir/checkpoints to start from; default the newest intact one",
        defines_run=False,
    )  # fmt: skip
    cont_nbr: int = option(
        0, "number of this continuation: N > 0 continues with fresh noise, 0 exactly as if never stopped",
        minimum=0, defines_run=False,
    )  # fmt: skip
    seed: int = option(0, "seed of everything random", minimum=0)
    published_behaviour: bool = option(
        False, "reproduce the public code where ours corrects it (docs/differences.md)"
    )

    @property
    def trains(self) -> bool:
        """Whether the mode changes a model, rather than look at one."""
        return self.mode in ("train", "continue", "train_deq")


@dataclass
class LaunchOptions:
    """Processes and devices."""

    device: str = option(
        "auto", "auto uses GPUs where there are any", choices=("auto", "cpu", "cuda"), defines_run=False
    )
    n_gpus_per_node: int = option(
        0, "ranks on each node; 0 is one for each GPU, or a single CPU rank", minimum=0, defines_run=False
    )
    n_nodes: int = option(
        0, "number of nodes; 0 is what mpirun, srun or torchrun started, else one", minimum=0, defines_run=False
    )
    node_rank: int = option(-1, "index of this node, from 0; -1 asks the launcher", minimum=-1, defines_run=False)
    master_address: str = option(
        "", "address of node 0 that the others can reach; default: agreed on under mpirun and srun", defines_run=False
    )
    master_port: int = option(
        0, "port of node 0 for the agents of the nodes; 0 is agreed on, or 29417 with --node_rank", minimum=0,
        maximum=65535, defines_run=False,
    )  # fmt: skip
    rendezvous_timeout: float = option(
        300.0, "seconds that nodes wait for each other at the start", above=0.0, defines_run=False
    )
    node_timeout: float = option(
        30.0, "seconds without a sign of life from a node until the run ends on every node", minimum=2.0,
        defines_run=False,
    )  # fmt: skip
    rank_timeout: float = option(
        120.0, "seconds without a sign of life until a stopped rank, or the agent that started it, is killed",
        minimum=3.0, defines_run=False,
    )  # fmt: skip
    max_restarts: int = option(
        0, "times that a failed run starts again from its newest snapshot, on all nodes together", minimum=0,
        defines_run=False,
    )  # fmt: skip
    collective_timeout: float = option(
        1800.0, "seconds until a collective that does not complete is an error", above=0.0, defines_run=False
    )
    grace_seconds: float = option(
        120.0, "seconds that ranks may take from a stop signal to their snapshot and exit", above=0.0,
        defines_run=False,
    )  # fmt: skip


@dataclass
class DataOptions:
    """Data sets."""

    dataset: str = option(
        "digits", "data set",
        choices=("multimodal_swissroll", "diamond", "digits", "mnist", "cifar10", "imagenet32", "imagenet_64",
                 "celeba_64", "celeba_256", "lmdb", "folder"),
    )  # fmt: skip
    data_location: str = option("data", "folder of the data set's files", defines_run=False)
    is_image: bool = option(True, "images, or points of dimension data_dim")
    image_size: int = option(32, "height and width in pixels", minimum=1)
    image_channels: int = option(3, "colour channels", choices=(1, 3))
    center_image: bool = option(True, "scale images to [-1, 1] rather than [0, 1]")
    data_dim: int = option(2, "dimension of points", minimum=1)
    random_flip: bool = option(False, "flip training images left to right with probability 1/2")
    uniform_dequantization: bool = option(
        False, "add uniform noise within one grey level to training images, as the likelihood evaluation does"
    )
    n_workers: int = option(0, "data-loader processes of each rank", minimum=0, defines_run=False)


@dataclass
class ProcessOptions:
    """Forward diffusion process."""

    sde: str = option(
        "cld", "critically-damped Langevin, variance preserving, sub-variance preserving, variance exploding, straight "
        "path (idode)", choices=("cld", "vpsde", "subvpsde", "vesde", "sp"),
    )  # fmt: skip
    beta_type: str = option("linear", "form of beta(t) = beta0 + beta1 t", choices=("linear",))
    beta0: float = option(4.0, "beta(0)", minimum=0.0)
    beta1: float = option(0.0, "slope of beta(t)", minimum=0.0)
    sigma_min: float = option(0.01, "smallest noise (vesde)", above=0.0)
    sigma_max: float = option(50.0, "largest noise (vesde)", above=0.0)
    m_inv: float = option(4.0, "inverse mass 1/M (cld)", above=0.0)
    gamma: float = option(0.04, "initial velocity variance in units of M (cld)", above=0.0)
    numerical_eps: float = option(1e-9, "added to the variances of the perturbation kernel (cld)", minimum=0.0)
    cld_objective: str = option("hsm", "hybrid or plain denoising score matching (cld)", choices=("hsm", "dsm"))


@dataclass
class ObjectiveOptions:
    """Training objective."""

    weighting: str = option(
        "reweightedv2", "weighting of the loss over time", choices=("likelihood", "reweightedv1", "reweightedv2")
    )
    importance_sampling: bool = option(
        False, "draw training times in proportion to their weight (weighting likelihood): same objective, less variance"
    )
    reduce_mean: bool = option(True, "mean over the numbers of an image; false takes half their sum (scoreflow)")
    loss_eps: float = option(1e-5, "smallest training time, of [0, 1]", above=0.0, maximum=0.5)
    mixed_score: bool = option(True, "learn the difference to the score of a Gaussian")


@dataclass
class NetworkOptions:
    """Network. Options of the published settings that allow one value here are checked, not silently ignored."""

    name: str = option(
        "ncsnpp", "ncsnpp for images, mlp for points; ddpm_unet (ddpm-torch) or improved_unet (improved-diffusion) for "
        "discrete diffusion; vdm_unet (idode)", choices=("ncsnpp", "mlp", "ddpm_unet", "improved_unet", "vdm_unet"),
    )  # fmt: skip
    n_channels: int = option(128, "base width (image networks)", minimum=4)
    ch_mult: list[int] = option([1, 2, 2, 2], "width of each level in units of n_channels (image networks)", minimum=1)
    n_resblocks: int = option(8, "residual blocks of each level (image networks)", minimum=1)
    attn_resolutions: list[int] = option([16], "resolutions with attention (image networks)", minimum=1)
    n_groups: int = option(32, "groups of the group norms (ddpm_unet, improved_unet)", minimum=1)
    group_norm_eps: float = option(
        1e-5, "added to variances in group norms: 1e-5 in HSIVI and improved-diffusion, 1e-6 in newer ddpm-torch "
        "(ddpm_unet, improved_unet)", above=0.0,
    )  # fmt: skip
    num_heads: int = option(4, "attention heads (improved_unet)", minimum=1)
    learn_sigma: bool = option(False, "weights for unused variance outputs, as published networks have (improved_unet)")
    use_scale_shift_norm: bool = option(True, "labels scale and shift group norms instead of adding (improved_unet)")
    with_attention: bool = option(False, "attention after every block, not only in the middle (vdm_unet)")
    with_fourier_features: bool = option(True, "sines and cosines of the image as further inputs (vdm_unet)")
    resamp_with_conv: bool = option(True, "convolve where resolution changes (ncsnpp)", choices=(True,))
    use_fir: bool = option(True, "resample with the FIR filter fir_kernel (ncsnpp)")
    fir_kernel: list[int] = option([1, 3, 3, 1], "taps of the FIR filter (ncsnpp)", minimum=0)
    skip_rescale: bool = option(True, "divide sums of two branches by sqrt(2) (ncsnpp)", choices=(True,))
    resblock_type: str = option("biggan", "kind of residual block (ncsnpp)", choices=("biggan",))
    progressive: str = option("none", "output pyramid (ncsnpp)", choices=("none",))
    progressive_input: str = option("residual", "input pyramid (ncsnpp)", choices=("none", "residual"))
    progressive_combine: str = option("sum", "how the input pyramid is joined (ncsnpp)", choices=("sum",))
    attention_type: str = option("ddpm", "kind of attention (ncsnpp)", choices=("ddpm",))
    normalization: str = option("GroupNorm", "normalisation (ncsnpp)", choices=("GroupNorm",))
    nonlinearity: str = option("swish", "activation", choices=("swish",))
    init_scale: float = option(0.0, "initial scale of each block's last layer (ncsnpp)", minimum=0.0)
    conv_size: int = option(3, "convolution size in pixels (ncsnpp)", choices=(3,))
    embedding_type: str = option("fourier", "time embedding (ncsnpp)", choices=("fourier", "positional"))
    fourier_scale: float = option(16.0, "scale of the Fourier frequencies (ncsnpp)", above=0.0)
    dropout: float = option(0.1, "dropout probability (image networks)", minimum=0.0, maximum=0.999)
    n_hidden: int = option(256, "width (mlp)", minimum=1)
    n_layers: int = option(4, "hidden blocks (mlp)", minimum=1)


@dataclass
class OptimizationOptions:
    """Optimiser, averages and precision."""

    optimizer: str = option("Adam", "optimiser", choices=("Adam", "AdamW", "Adamax"))
    learning_rate: float = option(2e-4, "learning rate after warm-up", above=0.0)
    weight_decay: float = option(0.0, "weight decay (L2 for Adam, decoupled for AdamW)", minimum=0.0)
    adam_beta2: float = option(0.999, "decay of the optimiser's second moment", above=0.0, maximum=0.999999)
    grad_clip: float = option(1.0, "largest global gradient norm; 0 is no clipping", minimum=0.0)
    n_warmup_iters: int = option(0, "steps over which the learning rate rises linearly", minimum=0)
    learning_rate_decay: bool = option(False, "let the learning rate fall linearly to 1e-8 at n_train_iters (idode)")
    ema_rate: float = option(0.9999, "decay of the weight average", minimum=0.0, maximum=1.0)
    autocast_train: bool = option(False, "mixed precision in training")
    autocast_eval: bool = option(False, "mixed precision in evaluation and sampling")
    autocast_dtype: str = option("bf16", "mixed-precision type; fp16 with loss scaling", choices=("bf16", "fp16"))
    compile: bool = option(False, "compile the network with torch.compile", defines_run=False)


@dataclass
class TrainingOptions:
    """The loop. An action is due at step s when s >= its threshold and s is a multiple of its *_freq; 0 is never."""

    n_train_iters: int = option(800_000, "training steps", minimum=1)
    training_batch_size: int = option(64, "largest number of samples one rank works on at a time", minimum=1)
    total_batch_size: int = option(
        0, "samples of one step over all ranks; 0 is training_batch_size x ranks x gradient_accumulation",
        minimum=0,
    )  # fmt: skip
    gradient_accumulation: int = option(1, "micro-batches of one step on each rank", minimum=1)
    testing_batch_size: int = option(64, "samples of one evaluation chunk (loss, likelihood)", minimum=1)
    sampling_batch_size: int = option(64, "samples of one sampling chunk", minimum=1)
    log_freq: int = option(100, "steps between log entries", minimum=0, defines_run=False)
    eval_freq: int = option(0, "steps between validation losses", minimum=0, defines_run=False)
    eval_threshold: int = option(1, "first step of validation", minimum=0, defines_run=False)
    n_eval_batches: int = option(1, "test batches of a validation during training", minimum=1, defines_run=False)
    likelihood_freq: int = option(0, "steps between likelihood evaluations", minimum=0, defines_run=False)
    likelihood_threshold: int = option(1, "first step of likelihood evaluation", minimum=0, defines_run=False)
    n_likelihood_batches: int = option(1, "test batches of a likelihood evaluation", minimum=1, defines_run=False)
    snapshot_freq: int | str = option(
        10_000, "steps between updates of checkpoint.pth; auto chooses from their cost and mtbf_hours", minimum=0,
        defines_run=False,
    )  # fmt: skip
    mtbf_hours: float = option(
        24.0, "expected hours between failures of the run (snapshot_freq auto)", above=0.0, defines_run=False
    )
    snapshot_threshold: int = option(1, "first step of a snapshot", minimum=0, defines_run=False)
    sample_freq: int = option(0, "steps between sample grids; 0 is with every fid and save action", minimum=0,
                              defines_run=False)  # fmt: skip
    sample_threshold: int = option(1, "first step of a sample grid", minimum=0, defines_run=False)
    fid_freq: int = option(0, "steps between FID evaluations", minimum=0, defines_run=False)
    fid_threshold: int = option(1, "first step of FID evaluation", minimum=0, defines_run=False)
    fid_samples_training: int = option(20_000, "samples of an FID evaluation during training", minimum=2,
                                       defines_run=False)  # fmt: skip
    save_freq: int = option(50_000, "steps between snapshots that are kept as checkpoint_<step>.pth", minimum=0,
                            defines_run=False)  # fmt: skip
    save_threshold: int = option(1, "first step of a kept snapshot", minimum=0, defines_run=False)


@dataclass
class SamplingOptions:
    """Sampling."""

    sampling_method: str = option(
        "ode", "probability-flow ODE, Euler-Maruyama, symmetric splitting (cld); ancestral or DDIM (ddpm); "
        "predictor-corrector (scoreflow)", choices=("ode", "em", "sscs", "ancestral", "ddim", "pc"), defines_run=False,
    )  # fmt: skip
    sampling_solver: str = option("RK45", "ODE solver (ode)", defines_run=False)
    sampling_rtol: float = option(1e-5, "relative tolerance of the solver (ode)", above=0.0, defines_run=False)
    sampling_atol: float = option(1e-5, "absolute tolerance of the solver (ode)", above=0.0, defines_run=False)
    sampling_n_steps: int = option(
        0, "steps of a fixed-step sampling_solver such as rk4 (ode); 0 for adaptive solvers", minimum=0,
        defines_run=False,
    )  # fmt: skip
    n_discrete_steps: int = option(
        500, "network evaluations (em, sscs, ancestral, ddim); one more than them (hsivi); steps of the chain (pc)",
        minimum=1, defines_run=("hsivi",),
    )  # fmt: skip
    striding: str = option("linear", "spacing of the steps (em, sscs)", choices=("linear", "quadratic"),
                           defines_run=False)  # fmt: skip
    sampling_eps: float = option(1e-3, "time at which sampling stops, of [0, 1]", minimum=0.0, maximum=0.5,
                                 defines_run=False)  # fmt: skip
    denoising: bool = option(True, "end with a noise-free step to time 0", defines_run=False)


@dataclass
class LikelihoodOptions:
    """Likelihood through the probability-flow ODE."""

    likelihood_solver: str = option("RK45", "ODE solver", defines_run=False)
    likelihood_rtol: float = option(1e-5, "relative tolerance", above=0.0, defines_run=False)
    likelihood_atol: float = option(1e-5, "absolute tolerance", above=0.0, defines_run=False)
    likelihood_n_steps: int = option(
        0, "steps of a fixed-step likelihood_solver such as rk4; 0 for adaptive solvers", minimum=0,
        defines_run=False,
    )  # fmt: skip
    likelihood_eps: float = option(1e-5, "smallest time, of [0, 1]", above=0.0, maximum=0.5, defines_run=False)
    likelihood_hutchinson_type: str = option(
        "rademacher", "probes of the trace estimator; exact computes the trace (points only)",
        choices=("rademacher", "gaussian", "exact"), defines_run=False,
    )  # fmt: skip


@dataclass
class EvaluationOptions:
    """--mode eval, and what the same evaluations use during training."""

    eval_folder: str = option("eval", "folder in workdir for results.json", defines_run=False)
    ckpt_file: str = option("", "snapshot to evaluate, in workdir/checkpoints or a path; default the newest intact one",
                            defines_run=False)  # fmt: skip
    eval_loss: bool = option(False, "evaluate the training objective on the test set", defines_run=False)
    eval_likelihood: bool = option(False, "evaluate NELBO and NLL, what the system has of them", defines_run=False)
    eval_quantities: str = option(
        "", "likelihoods of --eval_likelihood, by their names in results.json, with commas; default all",
        defines_run=False,
    )  # fmt: skip
    eval_repeats: int = option(
        1, "times that --eval_likelihood evaluates each item, with fresh noise", minimum=1, defines_run=False
    )
    eval_split: str = option(
        "test", "split for loss and likelihood", choices=("test", "train"), defines_run=False
    )
    eval_sample: bool = option(False, "write samples and a grid", defines_run=False)
    eval_fid: bool = option(False, "evaluate the Frechet distance", defines_run=False)
    eval_compare: bool = option(
        False, "Frechet distances and pictures of the sampler and of its teacher's with as many network evaluations "
        "(hsivi)", defines_run=False,
    )  # fmt: skip
    eval_density: bool = option(False, "draw the model's density on a grid (points)", defines_run=False)
    trajectory: bool = option(False, "draw how samples come about (trajectory.png)", defines_run=False)
    eval_n_trajectories: int = option(8, "samples that --trajectory draws", minimum=1, defines_run=False)
    eval_n_items: int = option(
        0, "test items for loss and likelihood; 0 is the whole test set (10,000 of generated data)", minimum=0,
        defines_run=False,
    )  # fmt: skip
    eval_n_samples: int = option(64, "samples that --eval_sample writes", minimum=1, defines_run=False)
    eval_fid_samples: int = option(50_000, "samples for the Frechet distance", minimum=2, defines_run=False)
    fid_detector: str = option("pixels", "feature detector: pixels, or the path of a TorchScript file",
                               defines_run=False)  # fmt: skip
    fid_statistics: str = option(
        "", "reference statistics (.npz with mu and sigma, or pool_3); default: computed from the training set",
        defines_run=False,
    )  # fmt: skip
    eval_seed: int = option(0, "seed of evaluation noise", minimum=0, defines_run=False)
