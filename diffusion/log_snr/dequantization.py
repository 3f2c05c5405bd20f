"""Continuous data for grey levels, whose density the ODE in log-SNR time gives (i-DODE, arXiv 2305.03935, Section 5).

Terms are float64 (B,), in nats, negative logarithms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from diffusion.bits import PixelScale, gaussian_entropy
from diffusion.log_snr.bound import reconstruction_term
from diffusion.log_snr.schedule import LogSnrSchedule, end_point

UNIFORM_START_GAMMA = -11.8
"""Where the noise of the diffusion is about as large as that of uniform dequantization into 256 levels."""


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
    within_range: bool = True,
) -> Dequantized:
    """Uniform noise within each level's interval; the data are taken for the state at gamma -11.8.

    The density is one of data space: PixelScale.offset is still to be added.

    Args:
        levels: uint8 (B, C, ...).
        uniform: in [0, 1), same shape.
        within_range: where -11.8 lies outside the schedule's range, start at the end of that.
    """
    gamma = max(UNIFORM_START_GAMMA, schedule.gamma_min) if within_range else UNIFORM_START_GAMMA
    return Dequantized(scale.dequantize(levels, uniform.double()), gamma, {})


def dequantize_variationally(
    schedule: LogSnrSchedule,
    levels: torch.Tensor,
    noise: torch.Tensor,
    scale: PixelScale,
    *,
    mean_entropy: bool,
    divisions_by_alpha: int = 1,
) -> Dequantized:
    """z_0 of the diffusion itself, with the decoder of the bound.

    Args:
        levels: uint8 (B, C, ...).
        noise: standard normal, same shape.
        mean_entropy: the expectation of log q, less noisy, instead of its value at the draw; right for the mean
            of log weights, not for the log of a mean of weights.
        divisions_by_alpha: as in reconstruction_term.

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
    reconstruction = reconstruction_term(schedule, levels, noise, scale, divisions_by_alpha=divisions_by_alpha)
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
