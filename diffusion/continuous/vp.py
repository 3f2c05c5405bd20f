"""The variance-preserving process (Song et al., arXiv 2011.13456, Section 3.4 and Appendix B)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from diffusion.continuous.chain import DiscreteStep, grid_index
from diffusion.continuous.noise_schedule import LinearBeta
from diffusion.continuous.process import WithoutVelocity

LABEL_SCALE = 999.0
"""Time labels of networks that were made for chains of 1,000 steps run from 0 to this."""

LINEAR_BELOW = 1e-3
"""Where the public ScoreFlow code replaces exponentials by their first order."""


@dataclass(frozen=True)
class LinearDrift(WithoutVelocity):
    """The drift -beta/2 u and the prior N(0, I), which the variance-preserving processes share."""

    schedule: LinearBeta
    linearised_start: bool = False

    @property
    def prior_standard_deviations(self) -> tuple[float, ...]:
        return (1.0,)

    @property
    def output_is_score(self) -> bool:
        return False

    def time_label(self, t: torch.Tensor) -> torch.Tensor:
        return LABEL_SCALE * t

    def drift_matrix(self, t: torch.Tensor) -> torch.Tensor:
        return (-self.schedule.beta(t) / 2)[..., None, None]

    def transition(self, t: torch.Tensor) -> torch.Tensor:
        """e^{-B/2}, or 1 - B/2 at the start where ``linearised_start``."""
        integral = self.schedule.integral(t)
        coefficient = (-integral / 2).exp()
        if self.linearised_start:
            coefficient = torch.where(integral / 2 <= LINEAR_BELOW, 1 - integral / 2, coefficient)
        return coefficient[..., None, None]


@dataclass(frozen=True)
class VariancePreserving(LinearDrift):
    """du = -beta/2 u dt + sqrt(beta) dw, with prior N(0, I). Methods as in diffusion.continuous.process.Process and
    diffusion.continuous.importance.WeightedProcess.

    Attributes:
        schedule: beta(t).
        linearised_start: evaluate kernel and cumulative weight at small times in first order, as the public code of
            ScoreFlow does (arXiv 2101.09258). The kernel then jumps by 0.05 % where the integral B of beta reaches
            0.002, the cumulative weight where it reaches 0.001.
    """

    def diffusion_coefficient(self, t: torch.Tensor) -> torch.Tensor:
        return self.schedule.beta(t).sqrt()

    def covariance_factor(self, t: torch.Tensor, initial_variances: Sequence[torch.Tensor | float]) -> torch.Tensor:
        (data_variance,) = initial_variances
        integral = self.schedule.integral(t)
        # 1 - (1 - s) e^-B without the cancellation at small B.
        variance = data_variance * (-integral).exp() - (-integral).expm1()
        return variance.sqrt()[..., None, None]

    def kernel_factor(self, t: torch.Tensor) -> torch.Tensor:
        integral = self.schedule.integral(t)
        variance = -(-integral).expm1()
        if self.linearised_start:
            variance = torch.where(integral / 2 <= LINEAR_BELOW, integral, variance)
        return variance.sqrt()[..., None, None]

    def analytic_score(self, u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """-u, exactly the score of standard-normal data, which this process leaves as they are."""
        return -u

    def cumulative_weight(self, t: torch.Tensor) -> torch.Tensor:
        """log(e^B - 1) (Song et al., arXiv 2101.09258, Section 4.3)."""
        integral = self.schedule.integral(t)
        variance = -(-integral).expm1()
        if self.linearised_start:
            variance = torch.where(integral <= LINEAR_BELOW, integral, variance)
        return variance.log() + integral

    def time_of_cumulative_weight(self, weight: torch.Tensor) -> torch.Tensor:
        return self.schedule.time(weight.exp().log1p())

    def interval(self, t: torch.Tensor, end: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        variance = self.schedule.beta(t) * (t - end)
        return -variance / (1 + (1 - variance).sqrt()), variance

    @property
    def kernel_starts_noisy(self) -> bool:
        return False

    def discrete_step(self, t: torch.Tensor, n_steps: int) -> DiscreteStep:
        """The chain of DDPM, x_{k+1} = sqrt(1 - beta_k) x_k + sqrt(beta_k) z (Song et al., arXiv 2011.13456, Appendix
        E)."""
        beta = discrete_beta(self.schedule, t, n_steps)
        scale = (1 - beta).sqrt()
        # sqrt(1 - beta) - 1 without cancellation.
        return DiscreteStep(-beta / (scale + 1), beta.sqrt(), beta.sqrt(), 1 - beta)


def discrete_beta(schedule: LinearBeta, t: torch.Tensor, n_steps: int) -> torch.Tensor:
    """beta_k of the chain of ``n_steps`` steps at the index k that t falls on; float64 like t. Below 1 only where
    there are more steps than the largest beta(t)."""
    position = grid_index(t, n_steps) / (n_steps - 1)
    return schedule.beta(position) / n_steps
