"""Times drawn in proportion to the maximum-likelihood weight of the loss at them."""

from __future__ import annotations

from typing import Protocol

import torch

from diffusion.continuous.kernel import loss_multiplier, noise_multiplier
from diffusion.continuous.process import Process

N_INTERVALS = 20_000
N_BISECTIONS = 100


class TimeDensity(Protocol):
    """A density of training times in proportion to the maximum-likelihood weight lambda(t) n(t)^2."""

    @property
    def normaliser(self) -> float:
        """Z of the objective that is a mean over uniform times in [loss_eps, 1]."""
        ...

    def times(self, uniform: torch.Tensor) -> torch.Tensor:
        """Times float64 (B,) from uniform numbers in [0, 1)."""
        ...


class WeightedProcess(Process, Protocol):
    """A process for which the integral of G^2 / std^2, std that of the kernel, is known."""

    def cumulative_weight(self, t: torch.Tensor) -> torch.Tensor:
        """An antiderivative of G^2 / std^2 at t, float64 of any shape."""
        ...

    def time_of_cumulative_weight(self, weight: torch.Tensor) -> torch.Tensor:
        """The time at which ``cumulative_weight`` has the given value, float64 of any shape."""
        ...


class ClosedFormTimes:
    """The density of ``ImportanceTimes`` without a table (Song et al., arXiv 2101.09258, Section 4.3).

    Args:
        process: forward process.
        loss_eps: smallest time.
        by_bisection: invert by bisection rather than in closed form; for a process with ``linearised_start``, whose
            cumulative weight is not monotone.
    """

    def __init__(self, process: WeightedProcess, loss_eps: float, *, by_bisection: bool = False) -> None:
        self.process = process
        self.loss_eps = loss_eps
        self.by_bisection = by_bisection
        ends = process.cumulative_weight(torch.tensor([loss_eps, 1.0], dtype=torch.float64))
        self.start = ends[0].item()
        self.total = (ends[1] - ends[0]).item()
        """The integral of G^2 / std^2 from loss_eps to 1."""
        self.normaliser = self.total / 2 / (1 - loss_eps)

    def times(self, uniform: torch.Tensor) -> torch.Tensor:
        """Times float64 (B,) from uniform numbers in [0, 1)."""
        weight = self.start + uniform.double() * self.total
        if not self.by_bisection:
            return self.process.time_of_cumulative_weight(weight)
        below, above = torch.full_like(weight, self.loss_eps), torch.ones_like(weight)
        for _ in range(N_BISECTIONS):
            middle = (below + above) / 2
            too_early = self.process.cumulative_weight(middle) <= weight
            below, above = torch.where(too_early, middle, below), torch.where(too_early, above, middle)
        return (below + above) / 2


class ImportanceTimes:
    """The density p(t) = lambda(t) n(t)^2 / Z on [loss_eps, 1] and its inverse cumulative distribution.

    The likelihood-weighted loss lambda |s - n z|^2 = lambda n^2 |s/n - z|^2 varies over orders of magnitude between
    times; with times drawn from p it becomes Z |s/n - z|^2, of the same expectation and far smaller variance (Song et
    al., arXiv 2101.09258, Section 4.3, there in closed form, see ``ClosedFormTimes``). Here Z and the inverse are
    tabulated on a grid even in ln t, which serves any process.

    Args:
        process: forward process.
        loss_eps: smallest time.
        device: where times are drawn, and the tables are.
    """

    def __init__(self, process: Process, loss_eps: float, device: torch.device | str = "cpu") -> None:
        grid = torch.linspace(torch.tensor(loss_eps).log().item(), 0.0, N_INTERVALS + 1, dtype=torch.float64)
        t = grid.exp()
        # The integrand over ln t is t times that over t.
        integrand = t * loss_multiplier(process, t) * noise_multiplier(process, t) ** 2
        pieces = (integrand[1:] + integrand[:-1]) / 2 * grid.diff()
        cumulative = torch.cat([torch.zeros(1, dtype=torch.float64), pieces.cumsum(0)])
        self.normaliser = cumulative[-1].item() / (1 - loss_eps)
        """Z of the objective that is a mean over uniform times in [loss_eps, 1]."""
        self.cumulative, self.log_times = cumulative.to(device), grid.to(device)

    def times(self, uniform: torch.Tensor) -> torch.Tensor:
        """Times float64 (B,) from uniform numbers in [0, 1)."""
        cumulative, log_times = self.cumulative, self.log_times
        wanted = uniform.double() * cumulative[-1]
        index = (torch.searchsorted(cumulative, wanted, right=True) - 1).clamp(0, N_INTERVALS - 1)
        below, above = cumulative[index], cumulative[index + 1]
        fraction = (wanted - below) / (above - below)
        return torch.lerp(log_times[index], log_times[index + 1], fraction).exp()
