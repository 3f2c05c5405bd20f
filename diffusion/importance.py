"""Times drawn in proportion to the maximum-likelihood weight of the loss at them."""

from __future__ import annotations

import torch

from diffusion.kernel import loss_multiplier, noise_multiplier
from diffusion.process import Process

N_INTERVALS = 20_000


class ImportanceTimes:
    """The density p(t) = lambda(t) n(t)^2 / Z on [loss_eps, 1] and its inverse cumulative distribution.

    The likelihood-weighted loss lambda |s - n z|^2 = lambda n^2 |s/n - z|^2 varies over orders of magnitude between
    times; with times drawn from p it becomes Z |s/n - z|^2, of the same expectation and far smaller variance (Song et
    al., arXiv 2101.09258, Section 4.3, there in closed form for the VP-SDE). Here Z and the inverse are tabulated on a
    grid even in ln t, which serves any process.

    Args:
        process: forward process.
        loss_eps: smallest time.
    """

    def __init__(self, process: Process, loss_eps: float) -> None:
        grid = torch.linspace(torch.tensor(loss_eps).log().item(), 0.0, N_INTERVALS + 1, dtype=torch.float64)
        t = grid.exp()
        # The integrand over ln t is t times that over t.
        integrand = t * loss_multiplier(process, t) * noise_multiplier(process, t) ** 2
        pieces = (integrand[1:] + integrand[:-1]) / 2 * grid.diff()
        self.log_times = grid
        self.cumulative = torch.cat([torch.zeros(1, dtype=torch.float64), pieces.cumsum(0)])
        self.normaliser = self.cumulative[-1].item() / (1 - loss_eps)
        """Z of the objective that is a mean over uniform times in [loss_eps, 1]."""

    def times(self, uniform: torch.Tensor) -> torch.Tensor:
        """Times float64 (B,) from uniform numbers in [0, 1)."""
        cumulative, log_times = self.cumulative.to(uniform.device), self.log_times.to(uniform.device)
        wanted = uniform.double() * cumulative[-1]
        index = (torch.searchsorted(cumulative, wanted, right=True) - 1).clamp(0, N_INTERVALS - 1)
        below, above = cumulative[index], cumulative[index + 1]
        fraction = (wanted - below) / (above - below)
        return torch.lerp(log_times[index], log_times[index + 1], fraction).exp()
