"""Diffusion in the time gamma = -log SNR, from gamma_min (data) to gamma_max (noise): z = alpha x + sigma eps.

Zheng et al., arXiv 2305.03935 (i-DODE), Section 3, and Kingma et al., arXiv 2107.00630 (VDM), Section 3. Everything is
float64, and no expression cancels at either end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch

from util.errors import UsageError

# From the right, Newton's method takes 10 steps at most for any range within -100 to 100.
_N_NEWTON_STEPS = 20
_SERIES_BELOW = 0.1
_N_SERIES_TERMS = 16


class LogSnrSchedule(Protocol):
    """A pair alpha(gamma), sigma(gamma) with alpha^2 / sigma^2 = exp(-gamma), on [gamma_min, gamma_max].

    Methods take gamma of any shape, and return float64 of that shape.
    """

    @property
    def gamma_min(self) -> float: ...

    @property
    def gamma_max(self) -> float: ...

    @property
    def velocity_scale(self) -> float:
        """s of the velocity (eps - k z) / (s alpha)."""
        ...

    def alpha(self, gamma: torch.Tensor) -> torch.Tensor: ...

    def sigma(self, gamma: torch.Tensor) -> torch.Tensor: ...

    def state_share(self, gamma: torch.Tensor) -> torch.Tensor:
        """k of the velocity; d log alpha / d gamma is -k sigma / 2."""
        ...

    def isotropic_divergence(self, gamma: torch.Tensor) -> torch.Tensor:
        """(1 - k sigma) / (s alpha): sigma times the divergence per dimension that a velocity has where its error is
        zero."""
        ...

    def remaining_weight(self, gamma: torch.Tensor) -> torch.Tensor:
        """The integral of alpha^2 from gamma to infinity."""
        ...

    def gamma_of_remaining_weight(self, weight: torch.Tensor) -> torch.Tensor:
        """The inverse of ``remaining_weight``, for weights between those of gamma_max and gamma_min."""
        ...


def _check_range(gamma_min: float, gamma_max: float) -> None:
    if not -100 <= gamma_min < gamma_max <= 100:
        raise UsageError(
            f"gamma_min = {gamma_min}, gamma_max = {gamma_max}: choose -100 <= gamma_min < gamma_max <= 100"
        )


@dataclass(frozen=True)
class GammaRange:
    """The ends of a schedule.

    Raises:
        UsageError: for ends out of order or beyond +-100.
    """

    gamma_min: float
    gamma_max: float

    def __post_init__(self) -> None:
        _check_range(self.gamma_min, self.gamma_max)


class VariancePreservingPath(GammaRange):
    """alpha^2 + sigma^2 = 1. Methods as in LogSnrSchedule."""

    @property
    def velocity_scale(self) -> float:
        return 1.0

    def alpha(self, gamma: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(-gamma.double()).sqrt()

    def sigma(self, gamma: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(gamma.double()).sqrt()

    def state_share(self, gamma: torch.Tensor) -> torch.Tensor:
        return self.sigma(gamma)

    def isotropic_divergence(self, gamma: torch.Tensor) -> torch.Tensor:
        return self.alpha(gamma)

    def remaining_weight(self, gamma: torch.Tensor) -> torch.Tensor:
        return _softplus(-gamma.double())

    def gamma_of_remaining_weight(self, weight: torch.Tensor) -> torch.Tensor:
        gamma = -(weight + (-torch.expm1(-weight)).log())
        return gamma.clamp(self.gamma_min, self.gamma_max)


class StraightPath(GammaRange):
    """alpha + sigma = 1, a straight line from data to noise. Methods as in LogSnrSchedule."""

    @property
    def velocity_scale(self) -> float:
        return math.sqrt(2)

    def alpha(self, gamma: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(-gamma.double() / 2)

    def sigma(self, gamma: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(gamma.double() / 2)

    def state_share(self, gamma: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(gamma, dtype=torch.float64)

    def isotropic_divergence(self, gamma: torch.Tensor) -> torch.Tensor:
        return torch.full_like(gamma, math.sqrt(0.5), dtype=torch.float64)

    def remaining_weight(self, gamma: torch.Tensor) -> torch.Tensor:
        # With u = exp(-gamma / 2) it is 2 (log(1 + u) - u / (1 + u)), whose two terms agree in first order.
        half = gamma.double() / 2
        u = torch.exp(-half)
        orders = torch.arange(2, 2 + _N_SERIES_TERMS, dtype=torch.float64, device=gamma.device)
        small = u.clamp(max=_SERIES_BELOW)[..., None]
        series = (-((-small) ** orders) * (1 / orders - 1)).sum(-1)
        return 2 * torch.where(u < _SERIES_BELOW, series, _softplus(-half) - torch.sigmoid(-half))

    def gamma_of_remaining_weight(self, weight: torch.Tensor) -> torch.Tensor:
        # The logarithm of the remaining weight is concave and falls, so Newton's method that starts right of the
        # solution stays right of it and never oscillates; the clamp only cuts off round-off.
        wanted = weight.double().log()
        gamma = torch.full_like(wanted, self.gamma_max)
        for _ in range(_N_NEWTON_STEPS):
            remaining = self.remaining_weight(gamma)
            step = (remaining.log() - wanted) * remaining / self.alpha(gamma) ** 2
            gamma = (gamma + step).clamp(self.gamma_min, self.gamma_max)
        return gamma


def _softplus(x: torch.Tensor) -> torch.Tensor:
    """log(1 + exp(x)), without the threshold above which PyTorch's takes it to be x."""
    return torch.logaddexp(x, torch.zeros_like(x))


def end_point(schedule: LogSnrSchedule, gamma: float) -> tuple[float, float]:
    """alpha and sigma at one gamma."""
    at = torch.tensor(gamma, dtype=torch.float64)
    return schedule.alpha(at).item(), schedule.sigma(at).item()


def log_alpha_slope(schedule: LogSnrSchedule, gamma: torch.Tensor) -> torch.Tensor:
    """d log alpha / d gamma, float64, shape of gamma."""
    return -schedule.state_share(gamma) * schedule.sigma(gamma) / 2


def uniform_gammas(schedule: LogSnrSchedule, t: torch.Tensor) -> torch.Tensor:
    """gamma_min + (gamma_max - gamma_min) t, float64, for t in [0, 1)."""
    return schedule.gamma_min + (schedule.gamma_max - schedule.gamma_min) * t.double()


def importance_gammas(schedule: LogSnrSchedule, t: torch.Tensor) -> torch.Tensor:
    """gamma of density alpha^2 / Z from uniform numbers t in [0, 1), float64 (arXiv 2305.03935, Section 4.2)."""
    start, end = _remaining_weights_at_ends(schedule)
    return schedule.gamma_of_remaining_weight((1 - t.double()) * start + t.double() * end)


def importance_normaliser(schedule: LogSnrSchedule) -> float:
    """Z, the integral of alpha^2 over [gamma_min, gamma_max]."""
    start, end = _remaining_weights_at_ends(schedule)
    return (start - end).item()


def _remaining_weights_at_ends(schedule: LogSnrSchedule) -> tuple[torch.Tensor, torch.Tensor]:
    """Scalars on the CPU, from where any device takes them without a transfer."""
    ends = torch.tensor([schedule.gamma_min, schedule.gamma_max], dtype=torch.float64)
    start, end = schedule.remaining_weight(ends)
    return start, end


def antithetic_times(start: torch.Tensor, places: torch.Tensor, n_places: int) -> torch.Tensor:
    """Times (start + i / n) mod 1, spread evenly over [0, 1) (VDM, arXiv 2107.00630, Appendix I.1).

    Args:
        start: float64 scalar, uniform on [0, 1), the same for all samples of a step.
        places: int64 (B,), which of the n samples of the step each one is, i = 0 to n - 1.
        n_places: n, over all ranks and micro-batches.

    Returns:
        float64 (B,), each uniform on [0, 1).
    """
    return (start + places.double() / n_places) % 1.0
