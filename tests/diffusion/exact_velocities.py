"""Data for which the velocity in log-SNR time is known, with everything that follows from it."""

import math
from dataclasses import dataclass

import torch

from diffusion.bits import PixelScale
from diffusion.log_snr.schedule import LogSnrSchedule, end_point
from diffusion.log_snr.velocity import VelocityPrediction
from diffusion.tensors import expand

SCALE = PixelScale()


def velocity_of_mean(
    schedule: LogSnrSchedule, mean: torch.Tensor, z: torch.Tensor, gamma: torch.Tensor
) -> torch.Tensor:
    """The velocity where E[x | z] is ``mean``."""
    noise = (z - expand(schedule.alpha(gamma), z) * mean) / expand(schedule.sigma(gamma), z)
    return VelocityPrediction().target(schedule, z, noise, gamma)


@dataclass
class GaussianPixels:
    """Independent pixels N(mean, variance)."""

    mean: float = 0.2
    variance: float = 0.3

    def velocity(self, schedule: LogSnrSchedule, z: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
        z = z.double()
        alpha, sigma = expand(schedule.alpha(gamma), z), expand(schedule.sigma(gamma), z)
        gain = alpha * self.variance / (alpha**2 * self.variance + sigma**2)
        return velocity_of_mean(schedule, self.mean + gain * (z - alpha * self.mean), z, gamma)

    def marginal(self, schedule: LogSnrSchedule, gamma: float) -> torch.distributions.Normal:
        alpha, sigma = end_point(schedule, gamma)
        return torch.distributions.Normal(alpha * self.mean, math.sqrt(alpha**2 * self.variance + sigma**2))


@dataclass
class LevelPixels:
    """Independent pixels with grey levels of known probabilities.

    Attributes:
        levels: int64 (L,).
        probabilities: float64 (L,), add up to 1.
    """

    levels: torch.Tensor
    probabilities: torch.Tensor

    def sample(self, n: int, n_pixels: int, seed: int = 0) -> torch.Tensor:
        """uint8 (n, 1, 1, n_pixels)."""
        generator = torch.Generator().manual_seed(seed)
        index = torch.multinomial(self.probabilities, n * n_pixels, replacement=True, generator=generator)
        return self.levels[index].reshape(n, 1, 1, n_pixels).to(torch.uint8)

    @property
    def entropy(self) -> float:
        """Of one pixel, in nats."""
        return -(self.probabilities * self.probabilities.log()).sum().item()

    def _log_joint(self, z: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """log P(level) N(z; alpha center, sigma^2), float64 (*z.shape, L)."""
        residual = (z[..., None] - alpha[..., None] * SCALE.centers(self.levels)) / sigma[..., None]
        return self.probabilities.log() - residual.square() / 2 - (sigma * math.sqrt(2 * math.pi)).log()[..., None]

    def velocity(self, schedule: LogSnrSchedule, z: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
        z = z.double()
        alpha, sigma = expand(schedule.alpha(gamma), z), expand(schedule.sigma(gamma), z)
        mean = self._log_joint(z, alpha, sigma).softmax(-1) @ SCALE.centers(self.levels)
        return velocity_of_mean(schedule, mean, z, gamma)

    def log_density(self, schedule: LogSnrSchedule, z: torch.Tensor, gamma: float) -> torch.Tensor:
        """Of each pixel of the state at gamma."""
        alpha, sigma = (torch.tensor(value, dtype=torch.float64) for value in end_point(schedule, gamma))
        return self._log_joint(z.double(), alpha, sigma).logsumexp(-1)
