"""The options of single systems, and of methods that few of them have. See ``util.options``."""

from __future__ import annotations

from dataclasses import dataclass

from util.option import option


@dataclass
class DiscreteOptions:
    """Diffusion in discrete steps (ddpm), and samplers that visit some of them."""

    noise_schedule: str = option("linear", "variances of the steps", choices=("linear", "cosine"))
    diffusion_steps: int = option(1000, "number of steps T", minimum=1)
    rescale_timesteps: bool = option(False, "label step k as 1000 k / T instead of k for the network")
    skip_type: str = option(
        "uniform", "which steps n_discrete_steps samplers visit: equally spaced, or closer near the data",
        choices=("uniform", "quad"), defines_run=("hsivi",),
    )  # fmt: skip
    ddim_eta: float = option(0.0, "noise of DDIM: 0 is none, 1 that of ancestral sampling", minimum=0.0, maximum=1.0,
                             defines_run=False)  # fmt: skip
    model_var_type: str = option(
        "fixed-small", "variance of ancestral steps: of the posterior given the data, or of the forward step",
        choices=("fixed-small", "fixed-large"), defines_run=False,
    )  # fmt: skip
    clip_denoised: bool = option(True, "clip predictions of the data to [-1, 1]", defines_run=False)
    bound_n_labels: int = option(
        0, "steps at which the NELBO is evaluated, one drawn in each of as many equal ranges; 0 is every step",
        minimum=0, defines_run=False,
    )  # fmt: skip


@dataclass
class LogSnrOptions:
    """Diffusion in log-SNR time (idode)."""

    gamma_min: float = option(-13.3, "-log SNR at the data", minimum=-100.0, maximum=100.0)
    gamma_max: float = option(5.0, "-log SNR at the prior", minimum=-100.0, maximum=100.0)
    velocity: bool = option(True, "predict the velocity of the ODE rather than the noise")
    antithetic_time_sampling: bool = option(True, "spread the training times of a step evenly over its global batch")
    second_order: bool = option(
        False, "add the second-order objective; to fine-tune, --mode continue with it and more n_train_iters"
    )
    second_order_weight: float = option(0.1, "weight of the second-order objective", above=0.0)
    augmentation: bool = option(
        False, "flip and rotate training images, each with probability 1/2, and tell the network"
    )
    dequantization: str = option(
        "truncated_normal", "dequantization of the likelihood (negative_log_likelihood)",
        choices=("uniform", "variational", "truncated_normal"), defines_run=False,
    )  # fmt: skip
    n_importance_samples: int = option(
        1, "dequantized images that the likelihood of one image is estimated from", minimum=1, defines_run=False
    )


@dataclass
class JointOptions:
    """A flow and the diffusion of its latents, trained together (indm)."""

    step_function: str = option(
        "nll", "one update of both networks on the bound, or (fid) of the flow on the bound and then of the score "
        "network on its own loss", choices=("nll", "fid"),
    )  # fmt: skip
    reconstruction_loss: bool = option(False, "add to the objective what times below loss_eps leave out")
    soft_truncation: bool = option(False, "draw the smallest training time anew for every step, from loss_eps on")
    soft_truncation_exponent: float = option(
        1.2, "the density of the smallest time falls with this power of it (soft_truncation)", minimum=1.0
    )
    flow_learning_rate: float = option(1e-3, "learning rate of the flow after warm-up", above=0.0)
    flow_ema_rate: float = option(0.999, "decay of the flow's weight average", minimum=0.0, maximum=1.0)
    flow_blocks: list[int] = option([16, 16], "residual blocks at each resolution of the flow", minimum=1)
    flow_channels: int = option(512, "hidden channels of the flow's blocks", minimum=1)
    flow_squeeze: bool = option(False, "let the flow see four channels of half the resolution for each channel")
    code_size: int = option(64, "numbers of the code that the flow is conditioned on", minimum=2)
    encoder_planes: list[int] = option([48, 96, 96], "channels of each level of the code's encoder", minimum=1)
    encoder_out_planes: int = option(8, "channels of the encoder's result", minimum=1)
    code_prior_channels: int = option(256, "width of the networks of the code's prior", minimum=1)
    n_code_prior_steps: int = option(2, "steps of the code's prior", minimum=1)
    flow_inverse_tolerance: float = option(
        1e-5, "largest error of each block's inverse, relative to 1 + the largest value of a sample", above=0.0,
        maximum=0.1, defines_run=False,
    )  # fmt: skip
    snr_scheduling: str = option(
        "linear", "from begin_snr to end_snr over the sampling steps, or always snr (pc)", choices=("linear", "none"),
        defines_run=False,
    )  # fmt: skip
    begin_snr: float = option(0.0, "signal-to-noise ratio at the first step; 0 is snr (pc)", minimum=0.0,
                              defines_run=False)  # fmt: skip
    end_snr: float = option(0.0, "signal-to-noise ratio after the last step; 0 is snr (pc)", minimum=0.0,
                            defines_run=False)  # fmt: skip
    pc_denoise: bool = option(
        False, "step from time to time of the continuous process and end with a denoising step of its own (pc)",
        defines_run=False,
    )  # fmt: skip
    pc_denoise_time: float = option(
        -1.0, "time that the denoising step goes to, below sampling_eps; also negative ones (pc_denoise)",
        minimum=-1000.0, maximum=0.5, defines_run=False,
    )  # fmt: skip
    temperature: float = option(1.0, "factor of the latents before the flow's inverse", above=0.0, defines_run=False)
    data_mean: bool = option(
        False, "start sampling around the mean latent of the training data", defines_run=False
    )
    data_mean_items: int = option(50_000, "training images for data_mean", minimum=1, defines_run=False)


@dataclass
class HsiviOptions:
    """HSIVI: few-step samplers out of a noise model (hsivi); n_discrete_steps is the number of its time points."""

    pretrained_model: str = option(
        "", "weights to start from: a snapshot of ddpm or hsivi, a published HSIVI checkpoint, or a published teacher "
        "(ddpm-torch, improved-diffusion)", defines_run=False,
    )  # fmt: skip
    teacher_diffusion_steps: int = option(
        0, "steps of the schedule that the teacher was trained with, a multiple of diffusion_steps; 0 is as many",
        minimum=0,
    )  # fmt: skip
    eta: float = option(0.2, "spread of a layer before training, in units of DDPM's", above=0.0, maximum=1.0)
    image_gamma: str = option("use", "learn the layers' spread for each pixel", choices=("use", "dis"))
    independent_log_gamma: str = option("dis", "learn each layer's spread on its own", choices=("use", "dis"))
    phi_learning_rate: float = option(1.6e-5, "learning rate of the sampler phi after warm-up", above=0.0)
    f_learning_rate: float = option(8e-5, "learning rate of the score network f after warm-up", above=0.0)
    f_learning_times: int = option(20, "updates of f for one of phi", minimum=1)
    cosine_lr_decay: str = option(
        "dis", "learning rates fall along half a cosine; else by a tenth every 3,000 steps", choices=("use", "dis")
    )
    f_pairs_per_chain: int = option(1, "states of each chain that f is trained on; memory grows with it", minimum=1)


@dataclass
class PredictorCorrectorOptions:
    """--sampling_method pc: n_discrete_steps times, at each of them corrector steps and then a predictor step."""

    predictor: str = option(
        "reverse_diffusion", "step from each time to the next",
        choices=("reverse_diffusion", "euler_maruyama", "ancestral_sampling", "probability_flow", "none"),
        defines_run=False,
    )  # fmt: skip
    corrector: str = option("langevin", "steps at each time: Langevin, or annealed Langevin with fixed sizes",
                            choices=("langevin", "ald", "none"), defines_run=False)  # fmt: skip
    snr: float = option(0.16, "signal-to-noise ratio of the corrector", above=0.0, defines_run=False)
    n_steps_each: int = option(1, "corrector steps at each time", minimum=1, defines_run=False)


@dataclass
class BoundOptions:
    """Variational bound on the likelihood (scoreflow), from likelihood_eps on."""

    bound_n_times: int = option(1000, "times at which it is evaluated for each image", minimum=1, defines_run=False)
    bound_form: str = option("dsm", "denoising or sliced score matching", choices=("dsm", "ssm"), defines_run=False)
    bound_importance_sampling: bool = option(
        True, "draw its times in proportion to their weight: same bound, less variance", defines_run=False
    )
    bound_offset: bool = option(
        True, "bound the likelihood of the data, not of the data with the noise of likelihood_eps", defines_run=False
    )


@dataclass
class DequantizerOptions:
    """Variational dequantization (scoreflow): --mode train_deq trains it, --eval_dequantizer uses it."""

    eval_dequantizer: bool = option(
        False, "likelihoods with the trained dequantizer's noise instead of uniform noise", defines_run=False
    )
    dequantizer_ckpt_file: str = option(
        "", "with --eval_dequantizer: snapshot in workdir/dequantizer/checkpoints or a path; default the newest intact "
        "one", defines_run=False,
    )  # fmt: skip
    score_checkpoint: str = option(
        "", "with --mode train_deq: snapshot of the score model in workdir/checkpoints or a path; default the one that "
        "the run began with, at first the newest intact one", defines_run=False,
    )  # fmt: skip
    dequantizer_architecture: str = option(
        "cifar10", "plain convolutions, maps of the channels and a shallow context, or weight normalisation, no such "
        "maps and a deep context", choices=("cifar10", "imagenet32"),
    )  # fmt: skip
    dequantizer_n_couplings: int = option(4, "steps of the flow", minimum=1)
    dequantizer_n_filters: int = option(96, "width of each coupling's network", minimum=1)
    dequantizer_n_blocks: int = option(2, "blocks of each coupling's network", minimum=1)
    dequantizer_n_components: int = option(32, "logistics in each mixture", minimum=1)
    dequantizer_n_heads: int = option(4, "attention heads of each coupling's network", minimum=1)
    dequantizer_context_channels: int = option(32, "width of the context network", minimum=1)
    dequantizer_n_context_blocks: int = option(3, "blocks of the context network", minimum=1)
    dequantizer_n_context_heads: int = option(4, "attention heads of the context network (imagenet32)", minimum=1)
