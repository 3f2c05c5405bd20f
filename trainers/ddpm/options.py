"""Options of ``--system ddpm``."""

from __future__ import annotations

from dataclasses import dataclass

from trainers.options import DiscreteOptions, LearningRateOptions
from util.option import VALUE, option


@dataclass(frozen=True)
class DdpmOptions(LearningRateOptions, DiscreteOptions):
    """Denoising diffusion (ddpm)."""

    sampling_method: str = option(
        "ancestral", "ancestral sampling, or DDIM", choices=("ancestral", "ddim"), effect=VALUE
    )
    n_discrete_steps: int = option(500, "network evaluations of a sample", minimum=1, effect=VALUE)
    skip_type: str = option(
        "uniform", "which steps sampling visits: equally spaced, or closer near the data",
        choices=("uniform", "quad"), effect=VALUE,
    )  # fmt: skip
    bound_n_labels: int = option(
        0, "steps at which the NELBO is evaluated, one drawn in each of as many equal ranges; 0 is every step",
        minimum=0, effect=VALUE,
    )  # fmt: skip
