"""Diffusion processes as chains of N steps, which the predictors and correctors of sampling refer to."""

from dataclasses import dataclass
from typing import Protocol

import torch

from diffusion.continuous.process import Process


@dataclass(frozen=True)
class DiscreteStep:
    """The step x_{k+1} = x_k + growth x_k + noise z of a chain; every field float64 (B,).

    Attributes:
        growth: relative change of the mean.
        noise: standard deviation of the added noise.
        ancestral_noise: standard deviation of the noise that ancestral sampling adds on the way back.
        langevin_scale: alpha_k, the share of the variance that the step leaves, by which Langevin steps are scaled.
    """

    growth: torch.Tensor
    noise: torch.Tensor
    ancestral_noise: torch.Tensor
    langevin_scale: torch.Tensor


class DiscreteProcess(Process, Protocol):
    """A process of the data alone that also says what its chain is."""

    def discrete_step(self, t: torch.Tensor, n_steps: int) -> DiscreteStep:
        """The step at times t float64 (B,) of the chain of ``n_steps`` >= 2 steps."""
        ...


def grid_index(t: torch.Tensor, n_steps: int) -> torch.Tensor:
    """The index k = floor(t (N - 1)) on the grid of N points over [0, 1]; float64 like t."""
    return (t * (n_steps - 1)).floor()
