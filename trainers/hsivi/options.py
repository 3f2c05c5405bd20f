"""Options of ``--system hsivi``."""

from __future__ import annotations

from dataclasses import dataclass

from trainers.options import DiscreteOptions
from util.option import PLACE, option, training_option


@dataclass(frozen=True)
class HsiviOptions(DiscreteOptions):
    """HSIVI: few-step samplers out of a noise model (hsivi)."""

    n_discrete_steps: int = option(500, "time points of the sampler, one more than its network evaluations", minimum=1)
    skip_type: str = option(
        "uniform", "which steps the time points are: equally spaced, or closer near the data",
        choices=("uniform", "quad"),
    )  # fmt: skip
    pretrained_model: str = option(
        "", "weights to start from: a snapshot of ddpm or hsivi, a published HSIVI checkpoint, or a published teacher "
        "(ddpm-torch, improved-diffusion)", effect=PLACE, path=True,
    )  # fmt: skip
    teacher_diffusion_steps: int = option(
        0, "steps of the schedule that the teacher was trained with, a multiple of diffusion_steps; 0 is as many",
        minimum=0,
    )  # fmt: skip
    eta: float = option(0.2, "spread of a layer before training, in units of DDPM's", above=0.0, maximum=1.0)
    image_gamma: str = option("use", "learn the layers' spread for each pixel", choices=("use", "dis"))
    independent_log_gamma: str = option("dis", "learn each layer's spread on its own", choices=("use", "dis"))
    phi_learning_rate: float = training_option(1.6e-5, "learning rate of the sampler phi after warm-up", above=0.0)
    f_learning_rate: float = training_option(
        8e-5, "learning rate of the score network f after warm-up", above=0.0
    )
    f_learning_times: int = training_option(20, "updates of f for one of phi", minimum=1)
    cosine_lr_decay: str = training_option(
        "dis", "learning rates fall along half a cosine; else by a tenth every 3,000 steps", choices=("use", "dis")
    )
    f_pairs_per_chain: int = training_option(
        1, "states of each chain that f is trained on; memory grows with it", minimum=1
    )
