"""The probability-flow equation in log-SNR time: samples, and likelihoods of 8-bit images.

Zheng et al., arXiv 2305.03935 (i-DODE), Sections 3 and 5. Terms are float64 (B,), in nats, negative logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from diffusion.bits import PixelScale
from diffusion.divergence import integrate_with_divergence
from diffusion.log_snr.dequantization import Dequantized
from diffusion.log_snr.schedule import LogSnrSchedule, end_point
from diffusion.log_snr.velocity import Parameterisation, Predict
from diffusion.ode import Solver, solve

Drift = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def ode_drift(schedule: LogSnrSchedule, parameterisation: Parameterisation, predict: Predict) -> Drift:
    """dz/dgamma as a function of z float64 (B, C, ...) and gamma float64 (B,)."""

    def drift(z: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
        return parameterisation.drift(schedule, predict(z, gamma), z, gamma)

    return drift


def ode_sample(
    schedule: LogSnrSchedule,
    drift: Drift,
    noise: torch.Tensor,
    solver: Solver,
    on_evaluation: Callable[[int, float], None] | None = None,
) -> tuple[torch.Tensor, int]:
    """From the prior N(0, sigma(gamma_max)^2) at gamma_max to z_0 at gamma_min.

    Args:
        noise: standard normal (B, C, ...).
        solver, on_evaluation: as in diffusion.ode.solve, whose time here is -gamma.

    Returns:
        z_0, float64, and the number of network evaluations.

    Raises:
        UsageError, RunFailed: as diffusion.ode.solve.
    """
    _, sigma = end_point(schedule, schedule.gamma_max)

    def right_hand_side(t: torch.Tensor, parts: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        (z,) = parts
        return (-drift(z, -t.expand(len(z))),)

    (z,), n_evaluations = solve(
        right_hand_side,
        (sigma * noise.double(),),
        -schedule.gamma_max,
        -schedule.gamma_min,
        solver,
        on_evaluation,
    )
    return z, n_evaluations


def decode(
    schedule: LogSnrSchedule, z: torch.Tensor, scale: PixelScale, *, divisions_by_alpha: int = 1
) -> torch.Tensor:
    """The likeliest levels int64 of z_0, same shape; one division by alpha takes it to the scale of data."""
    alpha, _ = end_point(schedule, schedule.gamma_min)
    return scale.nearest_levels(z.double() / alpha**divisions_by_alpha)


def ode_likelihood_terms(
    schedule: LogSnrSchedule,
    drift: Drift,
    start: Dequantized,
    probe: torch.Tensor | None,
    solver: Solver,
    on_evaluation: Callable[[int, float], None] | None = None,
) -> tuple[dict[str, torch.Tensor], int]:
    """-log P(levels), or one draw of the bound on it, by integrating from ``start`` to gamma_max.

    Args:
        probe: as in diffusion.divergence.integrate_with_divergence.
        solver, on_evaluation: as in diffusion.ode.solve.

    Returns:
        "prior" and "divergence" and the terms of ``start``, and the number of network evaluations.

    Raises:
        UsageError, RunFailed: as diffusion.ode.solve.
    """
    z, divergence, n_evaluations = integrate_with_divergence(
        drift, start.z, probe, start.gamma, schedule.gamma_max, solver, on_evaluation
    )
    _, sigma = end_point(schedule, schedule.gamma_max)
    values = z.flatten(1) / sigma
    prior = (values.square().sum(1) + values.shape[1] * math.log(2 * math.pi * sigma**2)) / 2
    return {"prior": prior, "divergence": -divergence, **start.terms}, n_evaluations
