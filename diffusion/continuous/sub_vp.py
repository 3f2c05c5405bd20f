"""The sub-variance-preserving process (Song et al., arXiv 2011.13456, Section 3.4 and Appendix B)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from diffusion.continuous.chain import DiscreteStep
from diffusion.continuous.vp import LINEAR_BELOW, LinearDrift, discrete_beta


@dataclass(frozen=True)
class SubVariancePreserving(LinearDrift):
    """du = -beta/2 u dt + sqrt(beta (1 - e^{-2B})) dw with B the integral of beta, and prior N(0, I). Methods as in
    diffusion.continuous.process.Process and diffusion.continuous.importance.WeightedProcess.

    The standard deviation of its kernel is 1 - e^{-B}, the variance of the variance-preserving process.

    Attributes:
        schedule: beta(t).
        linearised_start: evaluate kernel, diffusion coefficient and cumulative weight at small times in first order,
            as the public code of ScoreFlow does (arXiv 2101.09258); the kernel then jumps by 0.1 % where B reaches
            0.002, the others where 2B and B reach 0.001.
    """

    def diffusion_coefficient(self, t: torch.Tensor) -> torch.Tensor:
        doubled = 2 * self.schedule.integral(t)
        share = -(-doubled).expm1()
        if self.linearised_start:
            share = torch.where(doubled <= LINEAR_BELOW, doubled, share)
        return (self.schedule.beta(t) * share).sqrt()

    def covariance_factor(self, t: torch.Tensor, initial_variances: Sequence[torch.Tensor | float]) -> torch.Tensor:
        (data_variance,) = initial_variances
        integral = self.schedule.integral(t)
        variance = data_variance * (-integral).exp() + (-integral).expm1() ** 2
        return variance.sqrt()[..., None, None]

    def kernel_factor(self, t: torch.Tensor) -> torch.Tensor:
        integral = self.schedule.integral(t)
        deviation = -(-integral).expm1()
        if self.linearised_start:
            deviation = torch.where(integral / 2 <= LINEAR_BELOW, integral, deviation)
        return deviation[..., None, None]

    def analytic_score(self, u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The score of standard-normal data, whose variance dips to 3/4 on the way."""
        factor = self.covariance_factor(t, (1.0,)).reshape(-1, *[1] * (u.dim() - 1))
        return -u / (factor**2).to(u.dtype)

    def cumulative_weight(self, t: torch.Tensor) -> torch.Tensor:
        """2 log(e^B - 1) - B."""
        integral = self.schedule.integral(t)
        growth = integral.expm1()
        if self.linearised_start:
            growth = torch.where(integral <= LINEAR_BELOW, integral, growth)
        return 2 * growth.log() - integral

    def time_of_cumulative_weight(self, weight: torch.Tensor) -> torch.Tensor:
        # The weight is log(4 sinh^2(B / 2)).
        return self.schedule.time(2 * (weight / 2 - math.log(2)).exp().asinh())

    def discrete_step(self, t: torch.Tensor, n_steps: int) -> DiscreteStep:
        """An Euler-Maruyama step of length 1/N. Its alpha is that of the variance-preserving chain, whose drift it
        has: the public code has none, and its Langevin corrector fails."""
        growth = -self.schedule.beta(t) / (2 * n_steps)
        noise = self.diffusion_coefficient(t) / math.sqrt(n_steps)
        return DiscreteStep(growth, noise, noise, 1 - discrete_beta(self.schedule, t, n_steps))
