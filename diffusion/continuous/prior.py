"""The Gaussian prior at t = 1."""

import math

import torch

from diffusion.continuous.process import Process, split

_COMPONENT_NAMES = ("x", "v")


def prior_sample(process: Process, noise: torch.Tensor) -> torch.Tensor:
    """A state (B, k C, ...) of the prior, made from standard-normal ``noise`` of that shape."""
    components = split(process, noise)
    scaled = [z * std for z, std in zip(components, process.prior_standard_deviations, strict=True)]
    return torch.cat(scaled, dim=1)


def prior_log_density(process: Process, u: torch.Tensor) -> dict[str, torch.Tensor]:
    """Log density of each component of u (B, k C, ...) under the prior, in nats, float64 (B,).

    Returns:
        {"x": ...} or {"x": ..., "v": ...}; the joint log density is the sum.
    """
    densities = {}
    components = split(process, u.double())
    for name, component, std in zip(
        _COMPONENT_NAMES, components, process.prior_standard_deviations, strict=False
    ):
        values = component.flatten(1)
        log_normaliser = 0.5 * math.log(2 * math.pi * std**2)
        densities[name] = -values.square().sum(1) / (2 * std**2) - values.shape[1] * log_normaliser
    return densities
