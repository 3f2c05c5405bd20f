"""What a network of a diffusion in log-SNR time may predict, and the ODE that its prediction defines.

``predict(z, gamma)`` is the network: z (B, C, ...) in any floating dtype, gamma float64 (B,), to (B, C, ...).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from diffusion.log_snr.schedule import LogSnrSchedule, log_alpha_slope
from diffusion.tensors import expand

Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Parameterisation(Protocol):
    """What F(z, gamma) stands for. gamma is (B,), all else (B, C, ...)."""

    def target(
        self, schedule: LogSnrSchedule, z: torch.Tensor, noise: torch.Tensor, gamma: torch.Tensor
    ) -> torch.Tensor:
        """What F is trained to be on average, where z = alpha x + sigma noise; dtype of z."""
        ...

    def drift(
        self, schedule: LogSnrSchedule, prediction: torch.Tensor, z: torch.Tensor, gamma: torch.Tensor
    ) -> torch.Tensor:
        """dz / dgamma of the probability-flow equation, (d log alpha / d gamma) z + sigma/2 noise."""
        ...

    def weight(self, schedule: LogSnrSchedule, gamma: torch.Tensor) -> torch.Tensor:
        """w such that the integral of w |target - F|^2 over gamma is the diffusion term of the bound, float64 (B,)."""
        ...


class NoisePrediction:
    """F estimates the noise (VDM, arXiv 2107.00630, Section 3.4). Methods as in Parameterisation."""

    def target(
        self,
        schedule: LogSnrSchedule,  # noqa: ARG002
        z: torch.Tensor,
        noise: torch.Tensor,
        gamma: torch.Tensor,  # noqa: ARG002
    ) -> torch.Tensor:
        return noise.to(z.dtype)

    def drift(
        self, schedule: LogSnrSchedule, prediction: torch.Tensor, z: torch.Tensor, gamma: torch.Tensor
    ) -> torch.Tensor:
        slope, sigma = log_alpha_slope(schedule, gamma), schedule.sigma(gamma)
        return expand(slope, z) * z + expand(sigma / 2, z) * prediction

    def weight(self, schedule: LogSnrSchedule, gamma: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        return torch.full_like(gamma, 0.5, dtype=torch.float64)


class VelocityPrediction:
    """F estimates (noise - k z) / (s alpha) with k, s of the schedule (i-DODE, arXiv 2305.03935, Section 4.1).

    The part of the drift that is linear in z then drops out. Methods as in Parameterisation.
    """

    def target(
        self, schedule: LogSnrSchedule, z: torch.Tensor, noise: torch.Tensor, gamma: torch.Tensor
    ) -> torch.Tensor:
        share, scale = schedule.state_share(gamma), schedule.velocity_scale * schedule.alpha(gamma)
        return (noise - expand(share, z).to(z.dtype) * z) / expand(scale, z).to(z.dtype)

    def drift(
        self, schedule: LogSnrSchedule, prediction: torch.Tensor, z: torch.Tensor, gamma: torch.Tensor
    ) -> torch.Tensor:
        coefficient = schedule.velocity_scale * schedule.alpha(gamma) * schedule.sigma(gamma) / 2
        return expand(coefficient, z) * prediction

    def weight(self, schedule: LogSnrSchedule, gamma: torch.Tensor) -> torch.Tensor:
        return (schedule.velocity_scale * schedule.alpha(gamma)) ** 2 / 2
