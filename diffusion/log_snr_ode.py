"""The probability-flow equation in log-SNR time: samples, and likelihoods of 8-bit images.

Zheng et al., arXiv 2305.03935 (i-DODE), Sections 3 and 5. Terms are float64 (B,), in nats, negative logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from diffusion.bits import PixelScale, gaussian_entropy
from diffusion.likelihood import integrate_with_divergence
from diffusion.log_snr import LogSnrSchedule
from diffusion.ode import solve
from diffusion.variational_bound import end_point, reconstruction_term
from diffusion.velocity import Parameterisation, Predict

Drift = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

UNIFORM_START_GAMMA = -11.8
"""Where the noise of the diffusion is about as large as that of uniform dequantization into 256 levels."""


def ode_drift(schedule: LogSnrSchedule, parameterisation: Parameterisation, predict: Predict) -> Drift:
    """dz/dgamma as a function of z float64 (B, C, ...) and gamma float64 (B,)."""

    def drift(z: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
        return parameterisation.drift(schedule, predict(z, gamma), z, gamma)

    return drift


def ode_sample(
    schedule: LogSnrSchedule,
    drift: Drift,
    noise: torch.Tensor,
    *,
    solver: str,
    rtol: float,
    atol: float,
    n_steps: int | None = None,
) -> tuple[torch.Tensor, int]:
    """From the prior N(0, sigma(gamma_max)^2) at gamma_max to z_0 at gamma_min.

    Args:
        noise: standard normal (B, C, ...).
        solver, rtol, atol, n_steps: as in diffusion.ode.solve, whose time here is -gamma.

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
        solver=solver,
        rtol=rtol,
        atol=atol,
        n_steps=n_steps,
    )
    return z, n_evaluations


def decode(
    schedule: LogSnrSchedule, z: torch.Tensor, scale: PixelScale, *, published_behaviour: bool = False
) -> torch.Tensor:
    """The likeliest levels int64 of z_0, same shape; ``published_behaviour`` divides by alpha twice."""
    alpha, _ = end_point(schedule, schedule.gamma_min)
    return scale.nearest_levels(z.double() / (alpha**2 if published_behaviour else alpha))


@dataclass(frozen=True)
class Dequantized:
    """One draw of continuous data for given grey levels.

    Attributes:
        z: float64 (B, C, ...).
        gamma: where on the path z is.
        terms: what has to be added to -log density(z) for -log P(levels) or a bound on it.
    """

    z: torch.Tensor
    gamma: float
    terms: dict[str, torch.Tensor]


def dequantize_uniformly(
    schedule: LogSnrSchedule,
    levels: torch.Tensor,
    uniform: torch.Tensor,
    scale: PixelScale,
    *,
    published_behaviour: bool = False,
) -> Dequantized:
    """Uniform noise within each level's interval; the data are taken for the state at gamma -11.8.

    The density is one of data space: PixelScale.offset is still to be added.

    Args:
        levels: uint8 (B, C, ...).
        uniform: in [0, 1), same shape.
        published_behaviour: start at -11.8 even where that lies outside the schedule's range.
    """
    gamma = UNIFORM_START_GAMMA if published_behaviour else max(UNIFORM_START_GAMMA, schedule.gamma_min)
    return Dequantized(scale.dequantize(levels, uniform.double()), gamma, {})


def dequantize_variationally(
    schedule: LogSnrSchedule,
    levels: torch.Tensor,
    noise: torch.Tensor,
    scale: PixelScale,
    *,
    mean_entropy: bool,
    published_behaviour: bool = False,
) -> Dequantized:
    """z_0 of the diffusion itself, with the decoder of the bound.

    Args:
        levels: uint8 (B, C, ...).
        noise: standard normal, same shape.
        mean_entropy: the expectation of log q, less noisy, instead of its value at the draw; right for the mean
            of log weights, not for the log of a mean of weights.
        published_behaviour: as in reconstruction_term.

    Returns:
        terms "reconstruction" and "entropy", which is log q(z_0 | levels).
    """
    alpha, sigma = end_point(schedule, schedule.gamma_min)
    noise = noise.double()
    n_dimensions = levels[0].numel()
    if mean_entropy:
        log_density = -gaussian_entropy(sigma**2, n_dimensions) * _ones(levels)
    else:
        log_density = -(n_dimensions * math.log(2 * math.pi * sigma**2) + noise.flatten(1).square().sum(1)) / 2
    reconstruction = reconstruction_term(schedule, levels, noise, scale, published_behaviour=published_behaviour)
    z = alpha * scale.centers(levels) + sigma * noise
    return Dequantized(z, schedule.gamma_min, {"reconstruction": reconstruction, "entropy": log_density})


def truncation(schedule: LogSnrSchedule, scale: PixelScale) -> float:
    """tau: half the width of a level's interval in units of the noise at gamma_min."""
    half_width = (1 if scale.centered else 0.5) / scale.n_levels
    return half_width * math.exp(-schedule.gamma_min / 2)


def truncated_normal(uniform: torch.Tensor, tau: float) -> torch.Tensor:
    """Normals truncated to [-tau, tau], float64, from uniform numbers in [0, 1)."""
    probability = math.erf(tau / math.sqrt(2))
    return (math.sqrt(2) * torch.erfinv(probability * (2 * uniform.double() - 1))).clamp(-tau, tau)


def dequantize_within_levels(
    schedule: LogSnrSchedule,
    levels: torch.Tensor,
    noise: torch.Tensor,
    scale: PixelScale,
    *,
    mean_entropy: bool,
) -> Dequantized:
    """z_0 with normal noise truncated to each level's interval (arXiv 2305.03935, Section 5.1).

    Args:
        levels: uint8 (B, C, ...).
        noise: truncated normals as of ``truncated_normal`` with the tau of ``truncation``, same shape.
        mean_entropy: as in dequantize_variationally.

    Returns:
        term "entropy", log q(z_0 | levels).
    """
    alpha, sigma = end_point(schedule, schedule.gamma_min)
    noise = noise.double()
    n_dimensions = levels[0].numel()
    tau = truncation(schedule, scale)
    probability = math.erf(tau / math.sqrt(2))
    if mean_entropy:
        tail = tau * math.exp(-(tau**2) / 2) / (math.sqrt(2 * math.pi) * probability)
        per_dimension = -gaussian_entropy(sigma**2, 1) - math.log(probability) + tail
        log_density = n_dimensions * per_dimension * _ones(levels)
    else:
        log_normaliser = math.log(2 * math.pi * (sigma * probability) ** 2)
        log_density = -(n_dimensions * log_normaliser + noise.flatten(1).square().sum(1)) / 2
    return Dequantized(alpha * scale.centers(levels) + sigma * noise, schedule.gamma_min, {"entropy": log_density})


def _ones(levels: torch.Tensor) -> torch.Tensor:
    return torch.ones(len(levels), dtype=torch.float64, device=levels.device)


def ode_likelihood_terms(
    schedule: LogSnrSchedule,
    drift: Drift,
    start: Dequantized,
    probe: torch.Tensor | None,
    **solver: Any,
) -> tuple[dict[str, torch.Tensor], int]:
    """-log P(levels), or one draw of the bound on it, by integrating from ``start`` to gamma_max.

    Args:
        probe: as in diffusion.likelihood.ode_log_likelihood.
        solver: solver, rtol, atol, n_steps as in diffusion.ode.solve.

    Returns:
        "prior" and "divergence" and the terms of ``start``, and the number of network evaluations.

    Raises:
        UsageError, RunFailed: as diffusion.ode.solve.
    """
    z, divergence, n_evaluations = integrate_with_divergence(
        drift, start.z, probe, start.gamma, schedule.gamma_max, **solver
    )
    _, sigma = end_point(schedule, schedule.gamma_max)
    values = z.flatten(1) / sigma
    prior = (values.square().sum(1) + values.shape[1] * math.log(2 * math.pi * sigma**2)) / 2
    return {"prior": prior, "divergence": -divergence, **start.terms}, n_evaluations


def importance_weighted_terms(
    draws: Sequence[dict[str, torch.Tensor]], *, published_behaviour: bool = False
) -> dict[str, torch.Tensor]:
    """-log of the mean weight of K independent draws (Burda et al., arXiv 1509.00519).

    Args:
        draws: the terms of each draw, whose sum is -log weight.
        published_behaviour: the sum of the weights instead of their mean, so the result is log K too small.

    Returns:
        The mean over draws of each term, and with more than one draw "importance_sampling", which is what the result
        lies below the mean of -log weights.
    """
    means = {name: torch.stack([terms[name] for terms in draws]).mean(0) for name in draws[0]}
    if len(draws) == 1:
        return means
    negative_log_weights = torch.stack([torch.stack(list(terms.values())).sum(0) for terms in draws])
    total = -torch.logsumexp(-negative_log_weights, dim=0)
    if not published_behaviour:
        total = total + math.log(len(draws))
    return {**means, "importance_sampling": total - negative_log_weights.mean(0)}
