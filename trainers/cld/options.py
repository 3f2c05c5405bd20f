"""Options of ``--system cld``."""

from __future__ import annotations

from dataclasses import dataclass

from trainers.options import ScoreModelOptions
from util.option import VALUE, option


@dataclass(frozen=True)
class CldOptions(ScoreModelOptions):
    """Critically-damped Langevin diffusion (cld)."""

    sde: str = option("cld", "critically-damped Langevin, or variance preserving", choices=("cld", "vpsde"))
    m_inv: float = option(4.0, "inverse mass 1/M", above=0.0)
    gamma: float = option(0.04, "initial velocity variance in units of M", above=0.0)
    numerical_eps: float = option(1e-9, "added to the variances of the perturbation kernel", minimum=0.0)
    cld_objective: str = option("hsm", "hybrid or plain denoising score matching", choices=("hsm", "dsm"))
    mixed_score: bool = option(True, "learn the difference to the score of a Gaussian")
    sampling_method: str = option(
        "ode", "probability-flow ODE, Euler-Maruyama, symmetric splitting", choices=("ode", "em", "sscs"), effect=VALUE
    )
    n_discrete_steps: int = option(500, "network evaluations (em, sscs)", minimum=1, effect=VALUE)
    striding: str = option(
        "linear", "spacing of the steps (em, sscs)", choices=("linear", "quadratic"), effect=VALUE
    )
