"""Options of training that every system reads, and parts from which the systems put their own together.

A part is a dataclass; a system's options inherit from the parts that it reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from util.option import PLACE, VALUE, option, training_option


@dataclass(frozen=True)
class TrainingOptions:
    """The loop. An action is due at step s when s >= its threshold and s is a multiple of its *_freq; 0 is never."""

    n_train_iters: int = training_option(800_000, "training steps", minimum=1)
    training_batch_size: int = training_option(
        64, "largest number of samples one rank works on at a time", minimum=1
    )
    total_batch_size: int = training_option(
        0, "samples of one step over all ranks; 0 is training_batch_size x ranks x gradient_accumulation", minimum=0
    )
    gradient_accumulation: int = training_option(1, "micro-batches of one step on each rank", minimum=1)
    log_freq: int = option(100, "steps between log entries", minimum=0, effect=PLACE)
    snapshot_freq: int | str = option(
        10_000, "steps between updates of checkpoint.pth; auto chooses from their cost and mtbf_hours", minimum=0,
        effect=PLACE,
    )  # fmt: skip
    mtbf_hours: float = option(
        24.0, "expected hours between failures of the run (snapshot_freq auto)", above=0.0, effect=PLACE
    )
    snapshot_verify: str = option(
        "read_back", "read_back: a snapshot counts when the file, read again, is what was written; none: when it is "
        "flushed, and damage is noticed by its checksum on reading", choices=("read_back", "none"), effect=PLACE,
    )  # fmt: skip
    snapshot_threshold: int = option(1, "first step of a snapshot", minimum=0, effect=PLACE)
    save_freq: int = option(
        50_000, "steps between snapshots that are kept as checkpoint_<step>.pth", minimum=0, effect=PLACE
    )
    save_threshold: int = option(1, "first step of a kept snapshot", minimum=0, effect=PLACE)


@dataclass(frozen=True)
class OptimizationOptions:
    """Optimiser, averages and precision."""

    optimizer: str = training_option("Adam", "optimiser", choices=("Adam", "AdamW", "Adamax"))
    weight_decay: float = training_option(0.0, "weight decay (L2 for Adam, decoupled for AdamW)", minimum=0.0)
    adam_beta2: float = training_option(
        0.999, "decay of the optimiser's second moment", above=0.0, maximum=0.999999
    )
    grad_clip: float = training_option(1.0, "largest global gradient norm; 0 is no clipping", minimum=0.0)
    n_warmup_iters: int = training_option(0, "steps over which the learning rate rises linearly", minimum=0)
    ema_rate: float = training_option(0.9999, "decay of the weight average", minimum=0.0, maximum=1.0)
    autocast_train: bool = training_option(False, "mixed precision in training")
    autocast_eval: bool = option(False, "mixed precision in evaluation and sampling", evaluated_anew=True)
    autocast_dtype: str = option(
        "bf16", "mixed-precision type; fp16 with loss scaling", choices=("bf16", "fp16"), evaluated_anew=True
    )
    gradient_compression: str = training_option(
        "none", "how gradients travel between ranks: as they are, or rounded to bfloat16", choices=("none", "bf16")
    )
    tf32: bool = training_option(
        False, "TF32 in matrix products and convolutions of training on a GPU: 10 bits of mantissa; evaluations are in "
        "float32"
    )  # fmt: skip
    compile: bool = option(False, "compile the network with torch.compile", effect=PLACE)


@dataclass(frozen=True)
class NetworkChoice:
    """Network."""

    name: str = option("", "network; default the system's first, which --system NAME --help shows")


@dataclass(frozen=True)
class LearningRateOptions:
    """Learning rate."""

    learning_rate: float = training_option(2e-4, "learning rate after warm-up", above=0.0)


@dataclass(frozen=True)
class LinearBetaOptions:
    """Noise schedule beta(t) = beta0 + beta1 t."""

    published_keys: ClassVar[dict[str, Any]] = {"beta_type": "linear"}

    beta0: float = option(4.0, "beta(0)", minimum=0.0)
    beta1: float = option(0.0, "slope of beta(t)", minimum=0.0)


@dataclass(frozen=True)
class ContinuousTimeOptions:
    """Times of a diffusion on [0, 1]: where training, likelihoods and sampling stop before the data."""

    loss_eps: float = option(1e-5, "smallest training time", above=0.0, maximum=0.5)
    likelihood_eps: float = option(1e-5, "smallest time of likelihoods", above=0.0, maximum=0.5, effect=VALUE)
    sampling_eps: float = option(1e-3, "time at which sampling stops", minimum=0.0, maximum=0.5, effect=VALUE)
    denoising: bool = option(True, "end sampling with a noise-free step to time 0", effect=VALUE)


@dataclass(frozen=True)
class ObjectiveOptions:
    """Training objective."""

    weighting: str = option(
        "reweightedv2", "weighting of the loss over time", choices=("likelihood", "reweightedv1", "reweightedv2")
    )
    importance_sampling: bool = option(
        False, "draw training times in proportion to their weight (weighting likelihood): same objective, less variance"
    )


@dataclass(frozen=True)
class OdeSamplingOptions:
    """Sampling by the probability-flow ODE."""

    sampling_solver: str = option("RK45", "ODE solver (ode)", effect=VALUE)
    sampling_rtol: float = option(1e-5, "relative tolerance of the solver (ode)", above=0.0, effect=VALUE)
    sampling_atol: float = option(1e-5, "absolute tolerance of the solver (ode)", above=0.0, effect=VALUE)
    sampling_n_steps: int = option(
        0, "steps of a fixed-step sampling_solver such as rk4 (ode); 0 for adaptive solvers", minimum=0, effect=VALUE
    )


@dataclass(frozen=True)
class LikelihoodOptions:
    """Likelihood through the probability-flow ODE."""

    likelihood_solver: str = option("RK45", "ODE solver", effect=VALUE)
    likelihood_rtol: float = option(1e-5, "relative tolerance", above=0.0, effect=VALUE)
    likelihood_atol: float = option(1e-5, "absolute tolerance", above=0.0, effect=VALUE)
    likelihood_n_steps: int = option(
        0, "steps of a fixed-step likelihood_solver such as rk4; 0 for adaptive solvers", minimum=0, effect=VALUE
    )
    likelihood_hutchinson_type: str = option(
        "rademacher", "probes of the trace estimator; exact computes the trace (points only)",
        choices=("rademacher", "gaussian", "exact"), effect=VALUE,
    )  # fmt: skip


@dataclass(frozen=True)
class ScoreModelOptions(
    LearningRateOptions, LinearBetaOptions, ObjectiveOptions, ContinuousTimeOptions, OdeSamplingOptions,
    LikelihoodOptions,
):  # fmt: skip
    """What every system with a score network in continuous time reads."""


@dataclass(frozen=True)
class VarianceExplodingOptions:
    """The variance-exploding process (vesde)."""

    sigma_min: float = option(0.01, "smallest noise", above=0.0)
    sigma_max: float = option(50.0, "largest noise", above=0.0)


@dataclass(frozen=True)
class PredictorCorrectorOptions:
    """--sampling_method pc: n_discrete_steps times, at each of them corrector steps and then a predictor step."""

    predictor: str = option(
        "reverse_diffusion", "step from each time to the next",
        choices=("reverse_diffusion", "euler_maruyama", "ancestral_sampling", "probability_flow", "none"),
        effect=VALUE,
    )  # fmt: skip
    corrector: str = option(
        "langevin", "steps at each time: Langevin, or annealed Langevin with fixed sizes",
        choices=("langevin", "ald", "none"), effect=VALUE,
    )  # fmt: skip
    snr: float = option(0.16, "signal-to-noise ratio of the corrector", above=0.0, effect=VALUE)
    n_steps_each: int = option(1, "corrector steps at each time", minimum=1, effect=VALUE)


@dataclass(frozen=True)
class DiscreteOptions:
    """Diffusion in discrete steps, and samplers that visit some of them."""

    noise_schedule: str = option("linear", "variances of the steps", choices=("linear", "cosine"))
    diffusion_steps: int = option(1000, "number of steps T", minimum=1)
    rescale_timesteps: bool = option(False, "label step k as 1000 k / T instead of k for the network")
    ddim_eta: float = option(
        0.0, "noise of DDIM: 0 is none, 1 that of ancestral sampling", minimum=0.0, maximum=1.0, effect=VALUE
    )
    model_var_type: str = option(
        "fixed-small", "variance of ancestral steps: of the posterior given the data, or of the forward step",
        choices=("fixed-small", "fixed-large"), effect=VALUE,
    )  # fmt: skip
    clip_denoised: bool = option(True, "clip predictions of the data to [-1, 1]", effect=VALUE)
