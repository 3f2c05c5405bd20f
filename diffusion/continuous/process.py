"""What every diffusion process has to say of itself, and what follows for all of them alike.

A process is the linear stochastic differential equation du = F(t) u dt + G(t) dw on forward times t in [0,
1], from data at t = 0 to a Gaussian prior at t = 1. The state u holds one component (the data x) or two (data
x and velocity v), concatenated along axis 1; F acts on components, alike for every entry. Only the last
component is driven by noise, and "score" always means the score with respect to that component, so it has the
shape of the data.

Times and everything that depends on them are float64.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from diffusion.tensors import expand

ScoreFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""score(u, t): state (B, k C, ...) and float64 forward times (B,) to the score (B, C, ...)."""


class Process(Protocol):
    """A linear diffusion process. ``t`` is float64 of any shape S; k is the number of components."""

    @property
    def prior_standard_deviations(self) -> tuple[float, ...]:
        """Of each component at t = 1, data first; its length is k."""
        ...

    @property
    def velocity_variance(self) -> float | None:
        """Variance of the velocity at t = 0; None for a process of the data alone."""
        ...

    @property
    def conditions_on_velocity(self) -> bool:
        """Whether the perturbation kernel of training starts from a given velocity rather than averaging over
        it."""
        ...

    def drift_matrix(self, t: torch.Tensor) -> torch.Tensor:
        """F(t), (*S, k, k)."""
        ...

    def diffusion_coefficient(self, t: torch.Tensor) -> torch.Tensor:
        """G(t) of the last component, S."""
        ...

    def transition(self, t: torch.Tensor) -> torch.Tensor:
        """The matrix (*S, k, k) that takes the mean of the state from time 0 to t."""
        ...

    def covariance_factor(
        self, t: torch.Tensor, initial_variances: Sequence[torch.Tensor | float]
    ) -> torch.Tensor:
        """Lower Cholesky factor (*S, k, k) of the covariance at t of a state that starts as
        N(mean, diag(initial_variances)); the variances, one for each component, broadcast with t."""
        ...

    def kernel_factor(self, t: torch.Tensor) -> torch.Tensor:
        """Lower Cholesky factor (*S, k, k) of the covariance of the perturbation kernel that training
        uses."""
        ...

    def analytic_score(self, u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The part of a mixed score that is known: the score the state would have for standard-normal data
        (or an approximation of it). u (B, k C, ...), t (B,); returns (B, C, ...) in the dtype of u."""
        ...


class WithoutVelocity:
    """What processes of the data alone say of their velocity."""

    @property
    def velocity_variance(self) -> None:
        return None

    @property
    def conditions_on_velocity(self) -> bool:
        return False


class LabelledProcess(Process, Protocol):
    """A process of the data alone for which networks were published that see a label of the time (Song et al., arXiv
    2011.13456, Appendix H)."""

    @property
    def output_is_score(self) -> bool:
        """Whether these networks give the score, rather than the noise of the kernel."""
        ...

    def time_label(self, t: torch.Tensor) -> torch.Tensor:
        """The label, float64 like t: sigma for the variance-exploding process, 999 t for others."""
        ...


def n_components(process: Process) -> int:
    """1 for a process of the data alone, 2 with a velocity."""
    return len(process.prior_standard_deviations)


def state_shape(process: Process, data_shape: Sequence[int]) -> tuple[int, ...]:
    """Shape of one state without the batch axis, for data of shape (C, ...)."""
    return (n_components(process) * data_shape[0], *data_shape[1:])


def split(process: Process, u: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The components of a state (B, k C, ...), each (B, C, ...): (x,) or (x, v)."""
    return u.chunk(n_components(process), dim=1)


def apply(matrix: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """A matrix on components (B, k, k) times a state (B, k C, ...)."""
    components = u.unflatten(1, (matrix.shape[-1], -1))
    matrix = matrix.reshape(*matrix.shape, *[1] * (u.dim() - 1))
    return (matrix * components.unsqueeze(1)).sum(2).flatten(1, 2)


def initial_state(
    process: Process, x: torch.Tensor, velocity_noise: torch.Tensor | None = None
) -> torch.Tensor:
    """The state at t = 0 for data ``x`` (B, C, ...).

    Args:
        velocity_noise: standard normal, shape of x, of which the velocity is made; None gives the mean
            velocity 0. A process without velocity does not look at it.
    """
    if process.velocity_variance is None:
        return x
    velocity = (
        torch.zeros_like(x) if velocity_noise is None else process.velocity_variance**0.5 * velocity_noise
    )
    return torch.cat([x, velocity], dim=1)


def drift(process: Process, u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Forward drift F(t) u; u (B, k C, ...), t float64 (B,), result float64 like u."""
    return apply(process.drift_matrix(t), u)


def driven(process: Process, values: torch.Tensor) -> torch.Tensor:
    """Values (B, C, ...) for the last component as a state (B, k C, ...) that is zero elsewhere."""
    undriven = [torch.zeros_like(values)] * (n_components(process) - 1)
    return torch.cat([*undriven, values], dim=1)


def diffusion(process: Process, u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Forward diffusion coefficient, float64 with the shape of u: G(t) on the last component, zero
    elsewhere."""
    coefficient = expand(process.diffusion_coefficient(t), u)
    return driven(process, coefficient.expand(split(process, u)[-1].shape))
