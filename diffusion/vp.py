"""The variance-preserving process (Song et al., arXiv 2011.13456, Section 3.4 and Appendix B)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from diffusion.noise_schedule import LinearBeta


@dataclass(frozen=True)
class VariancePreserving:
    """du = -beta/2 u dt + sqrt(beta) dw, with prior N(0, I). Methods as in diffusion.process.Process."""

    schedule: LinearBeta

    @property
    def prior_standard_deviations(self) -> tuple[float, ...]:
        return (1.0,)

    @property
    def velocity_variance(self) -> None:
        return None

    @property
    def conditions_on_velocity(self) -> bool:
        return False

    def drift_matrix(self, t: torch.Tensor) -> torch.Tensor:
        return (-self.schedule.beta(t) / 2)[..., None, None]

    def diffusion_coefficient(self, t: torch.Tensor) -> torch.Tensor:
        return self.schedule.beta(t).sqrt()

    def transition(self, t: torch.Tensor) -> torch.Tensor:
        return (-self.schedule.integral(t) / 2).exp()[..., None, None]

    def covariance_factor(
        self, t: torch.Tensor, initial_variances: Sequence[torch.Tensor | float]
    ) -> torch.Tensor:
        (data_variance,) = initial_variances
        integral = self.schedule.integral(t)
        # 1 - (1 - s) e^-B without the cancellation at small B.
        variance = data_variance * (-integral).exp() - (-integral).expm1()
        return variance.sqrt()[..., None, None]

    def kernel_factor(self, t: torch.Tensor) -> torch.Tensor:
        return self.covariance_factor(t, (0.0,))

    def analytic_score(self, u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """-u, exactly the score of standard-normal data, which this process leaves as they are."""
        return -u
