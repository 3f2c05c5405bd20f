"""The variance-exploding process (Song et al., arXiv 2011.13456, Section 3.4 and Appendix B)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from diffusion.continuous.chain import DiscreteStep, grid_index
from diffusion.continuous.process import WithoutVelocity
from util.errors import UsageError


@dataclass(frozen=True)
class VarianceExploding(WithoutVelocity):
    """du = sigma(t) sqrt(2 log(sigma_max / sigma_min)) dw with sigma(t) = sigma_min (sigma_max / sigma_min)^t, and
    prior N(0, sigma_max^2 I). Methods as in diffusion.continuous.process.Process and
    diffusion.continuous.importance.WeightedProcess.

    The kernel of training has the standard deviation sigma(t): it begins with noise of sigma_min, which the process
    itself does not add. What a network learns are data with that much noise.

    Raises:
        UsageError: if not 0 < sigma_min < sigma_max.
    """

    sigma_min: float
    sigma_max: float

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise UsageError(
                f"sigma_min = {self.sigma_min}, sigma_max = {self.sigma_max}: choose 0 < sigma_min < sigma_max"
            )

    @property
    def prior_standard_deviations(self) -> tuple[float, ...]:
        return (self.sigma_max,)

    @property
    def log_ratio(self) -> float:
        """log(sigma_max / sigma_min)."""
        return math.log(self.sigma_max / self.sigma_min)

    def sigma(self, t: torch.Tensor) -> torch.Tensor:
        """Standard deviation of the kernel, float64 like t."""
        return self.sigma_min * (self.log_ratio * t).exp()

    def drift_matrix(self, t: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(t)[..., None, None]

    def diffusion_coefficient(self, t: torch.Tensor) -> torch.Tensor:
        return self.sigma(t) * math.sqrt(2 * self.log_ratio)

    def transition(self, t: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(t)[..., None, None]

    def covariance_factor(self, t: torch.Tensor, initial_variances: Sequence[torch.Tensor | float]) -> torch.Tensor:
        (data_variance,) = initial_variances
        # sigma^2 - sigma_min^2 without the cancellation at small t.
        added = self.sigma_min**2 * (2 * self.log_ratio * t).expm1()
        return (data_variance + added).sqrt()[..., None, None]

    def kernel_factor(self, t: torch.Tensor) -> torch.Tensor:
        return self.sigma(t)[..., None, None]

    def analytic_score(self, u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The score of standard-normal data."""
        factor = self.covariance_factor(t, (1.0,)).reshape(-1, *[1] * (u.dim() - 1))
        return -u / (factor**2).to(u.dtype)

    def cumulative_weight(self, t: torch.Tensor) -> torch.Tensor:
        """2 log(sigma_max / sigma_min) t: the weight is the same at all times."""
        return 2 * self.log_ratio * t

    def time_of_cumulative_weight(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / (2 * self.log_ratio)

    def interval(self, t: torch.Tensor, end: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros_like(t), self.sigma(t) ** 2 - self.sigma(end) ** 2

    @property
    def kernel_starts_noisy(self) -> bool:
        return True

    @property
    def output_is_score(self) -> bool:
        return True

    def time_label(self, t: torch.Tensor) -> torch.Tensor:
        return self.sigma(t)

    def discrete_step(self, t: torch.Tensor, n_steps: int) -> DiscreteStep:
        """The chain of SMLD, whose sigma_k are geometric from sigma_min to sigma_max, preceded by 0 (Song et al.,
        arXiv 2011.13456, Appendices E and F)."""
        index = grid_index(t, n_steps)
        now = self.sigma(index / (n_steps - 1))
        before = torch.where(index > 0, self.sigma((index - 1) / (n_steps - 1)), 0.0)
        noise = (now**2 - before**2).sqrt()
        return DiscreteStep(torch.zeros_like(t), noise, before / now * noise, torch.ones_like(t))
