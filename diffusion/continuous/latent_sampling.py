"""Reverse steps from one time to another, and a sampler of such steps that ends with a denoising step of its own.

INDM (Kim et al., arXiv 2205.13699) denoises in this way beside plain predictor-corrector sampling
(diffusion.continuous.predictor_corrector). States x are (B, C, ...), times float64 (B,).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch

from diffusion.continuous.chain import DiscreteProcess
from diffusion.continuous.predictor_corrector import LangevinSize, States, langevin
from diffusion.continuous.process import Process, ScoreFunction
from diffusion.continuous.reverse import probability_flow_drift
from diffusion.ode import Solver, solve
from diffusion.tensors import expand


class LatentProcess(DiscreteProcess, Protocol):
    """A process of the data alone that can step between any two of its times."""

    @property
    def kernel_starts_noisy(self) -> bool:
        """Whether the kernel of training begins with noise that the process itself does not add."""
        ...

    def interval(self, t: torch.Tensor, end: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Relative change of the mean and added variance from ``end`` to a later t, float64 (B,) each."""
        ...


OnPredictedStep = Callable[[float, torch.Tensor], None]
"""on_step(t, x): told each time and the state after the steps from it, without the predictor's noise."""


def _interval(process: LatentProcess, t: torch.Tensor, end: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Relative change of the mean and added variance of the forward process from ``end`` to t, float64 (B,).

    From times that are not positive the process is extended as though its noise grew at the rate that it has at t.
    """
    at_the_start = process.diffusion_coefficient(t) ** 2 * (t - end)
    growth, variance = process.interval(t, end)
    before = end <= 0
    return torch.where(before, 0.0, growth), torch.where(before, at_the_start, variance)


def reverse_step(
    process: LatentProcess,
    score: ScoreFunction,
    x: torch.Tensor,
    t: torch.Tensor,
    end: torch.Tensor,
    noise: torch.Tensor,
) -> States:
    """A step of the reverse-time equation from t to ``end``, which may be 0 or less.

    Returns:
        The state after the step and the same without the step's noise.
    """
    growth, variance = _interval(process, t, end)
    mean = x - expand(growth, x) * x + expand(variance, x) * score(x, t)
    return mean + expand(variance.sqrt(), x) * noise, mean


def denoising_step(
    process: LatentProcess, score: ScoreFunction, x: torch.Tensor, t: torch.Tensor, end: torch.Tensor
) -> torch.Tensor:
    """A step of the probability flow from t to ``end``, which may be 0 or less.

    With ``end`` = -1 and t near 0 the step for a variance-exploding process is log(sigma_max / sigma_min) times as long
    as one to the conditional mean (Tweedie's formula).
    """
    growth, variance = _interval(process, t, end)
    return x - expand(growth, x) * x + expand(variance / 2, x) * score(x, t)


def end_step(process: LatentProcess, score: ScoreFunction, x: torch.Tensor, time: float) -> torch.Tensor:
    """What ends probability-flow sampling at a small ``time``: its noise taken off, without new noise.

    For the variance-exploding process, whose kernel begins with noise of sigma_min, that is the conditional mean; for
    the variance-preserving one, as published, a step of the reverse-time equation to 0, the same in first order.
    """
    t = torch.full((len(x),), time, dtype=torch.float64, device=x.device)
    if process.kernel_starts_noisy:
        return x + expand(process.kernel_factor(t)[..., 0, 0] ** 2, x) * score(x, t)
    return reverse_step(process, score, x, t, torch.zeros_like(t), torch.zeros_like(x))[1]


@dataclass(frozen=True)
class DenoisedPredictorCorrector:
    """Settings of ``denoised_predictor_corrector``.

    Attributes:
        snrs: signal-to-noise ratio of the Langevin step at each of the N times; N is at least 2.
        sampling_eps: last time.
        denoise_time: time that the denoising step goes to.
        batch_step_sizes: as in ``LangevinSize``.
    """

    snrs: Sequence[float]
    sampling_eps: float
    denoise_time: float
    batch_step_sizes: bool = False


@torch.no_grad()
def denoised_predictor_corrector(
    process: LatentProcess,
    score: ScoreFunction,
    state: torch.Tensor,
    settings: DenoisedPredictorCorrector,
    normal: Callable[[], torch.Tensor],
    on_step: OnPredictedStep | None = None,
) -> tuple[torch.Tensor, int]:
    """A Langevin step at each of N equidistant times from 1 to sampling_eps but the last, each followed by a
    reverse step to the next time; then a denoising step from the last.

    Args:
        state: (B, C, ...), a draw of the prior.
        settings: times and steps.
        normal: gives the next standard normals of the shape of the state, two at each time but the last.
        on_step: called after each predictor step and after the denoising step.

    Returns:
        float64 state (B, C, ...) and the number of network evaluations.
    """
    x = mean = state.double()
    n_steps = len(settings.snrs)
    on_host = torch.linspace(1, settings.sampling_eps, n_steps, dtype=torch.float64)
    times = on_host.to(x.device)
    for time, (start, following), snr in zip(on_host.tolist(), pairwise(times), settings.snrs, strict=False):
        t, end = start.expand(len(x)), following.expand(len(x))
        x, _ = langevin(process, score, x, t, [normal()], LangevinSize(n_steps, snr, settings.batch_step_sizes))
        x, mean = reverse_step(process, score, x, t, end, normal())
        if on_step is not None:
            on_step(time, mean)
    t = times[-1].expand(len(x))
    x = denoising_step(process, score, mean, t, torch.full_like(t, settings.denoise_time))
    if on_step is not None:
        on_step(settings.sampling_eps, x)
    return x, 2 * (n_steps - 1) + 1


def probability_flow_path(
    process: Process,
    score: ScoreFunction,
    state: torch.Tensor,
    n_states: int,
    sampling_eps: float,
    solver: Solver,
) -> list[torch.Tensor]:
    """States of the probability flow at ``n_states`` equidistant times from 1 to sampling_eps, both included.

    Args:
        state: (B, C, ...), a draw of the prior; the first of the result.
        solver: as in diffusion.ode.solve, for each piece.

    Returns:
        float64 states.
    """

    def right_hand_side(tau: torch.Tensor, parts: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        times = tau.expand(len(state))
        return (probability_flow_drift(process, score(parts[0], 1 - times), parts[0], times),)

    times = torch.linspace(0, 1 - sampling_eps, n_states, dtype=torch.float64).tolist()
    states = [state.double()]
    for start, end in pairwise(times):
        (after,), _ = solve(right_hand_side, (states[-1],), start, end, solver)
        states.append(after)
    return states
