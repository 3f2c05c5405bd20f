"""Samplers: Euler-Maruyama, the symmetric splitting of CLD, and the probability-flow equation.

Each starts from a state of the prior at reversed time tau = 0 and ends at tau = 1 - sampling_eps, in float64,
and returns the whole state and the number of network evaluations (NFE). With ``denoise`` a last step of size
sampling_eps without noise follows, and is one of the network evaluations. ``normal()`` gives the next
standard-normal tensor of the state's shape.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch

from diffusion.continuous.cld import CriticallyDampedLangevin
from diffusion.continuous.process import Process, ScoreFunction, driven, split
from diffusion.continuous.reverse import probability_flow_drift, reverse_diffusion, reverse_drift
from diffusion.continuous.time_grid import reversed_time_grid
from diffusion.ode import Solver, solve
from diffusion.tensors import expand

Normal = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Step:
    """One step of a sampler with fixed steps, told to ``on_step`` when it is done.

    Attributes:
        index: 0 to n_steps - 1; a denoising step is counted.
        n_steps: number of steps, equal to the number of network evaluations.
        tau: reversed time at the start of the step.
        size: step in tau.
        stages: states within the step by name, each (B, k C, ...), in the order in which they arise; the last
            is the state at its end.
    """

    index: int
    n_steps: int
    tau: float
    size: float
    stages: dict[str, torch.Tensor]


OnStep = Callable[[Step], None]


@dataclass(frozen=True)
class StepGrid:
    """The steps of a sampler with fixed steps.

    Attributes:
        n_evaluations: steps, a denoising step included.
        sampling_eps: forward time at which sampling stops.
        striding: as in diffusion.continuous.time_grid.
        denoise: end with a denoising step.
    """

    n_evaluations: int
    sampling_eps: float
    striding: str
    denoise: bool

    def times(self) -> list[float]:
        """Reversed times tau, the denoising step left out. Raises UsageError for too few steps, or no such striding."""
        return reversed_time_grid(self.n_evaluations - self.denoise, 1 - self.sampling_eps, self.striding).tolist()


def _times(tau: float, state: torch.Tensor) -> torch.Tensor:
    """The same time for every sample, float64 (B,)."""
    return torch.full((len(state),), tau, dtype=torch.float64, device=state.device)


def _noise_free_step(
    process: Process, score: ScoreFunction, state: torch.Tensor, tau: float, size: float
) -> torch.Tensor:
    times = _times(tau, state)
    return state + reverse_drift(process, score(state, 1 - times), state, times) * size


@torch.no_grad()
def noise_free_end(
    process: Process, score: ScoreFunction, state: torch.Tensor, sampling_eps: float
) -> torch.Tensor:
    """The last Euler-Maruyama step, from tau = 1 - sampling_eps to the data, without its noise."""
    return _noise_free_step(process, score, state, 1 - sampling_eps, sampling_eps)


def _fixed_steps(
    process: Process,
    score: ScoreFunction,
    state: torch.Tensor,
    take_step: Callable[[torch.Tensor, float, float], dict[str, torch.Tensor]],
    steps: StepGrid,
    on_step: OnStep | None,
) -> tuple[torch.Tensor, int]:
    """Run ``take_step(state, tau, next tau) -> stages`` over the time grid, and denoise."""
    state = state.double()
    grid, n_evaluations = steps.times(), steps.n_evaluations

    def report(index: int, tau: float, size: float, stages: dict[str, torch.Tensor]) -> None:
        if on_step is not None:
            on_step(Step(index, n_evaluations, tau, size, stages))

    for index, (tau, tau_next) in enumerate(pairwise(grid)):
        stages = take_step(state, tau, tau_next)
        state = stages["end"]
        report(index, tau, tau_next - tau, stages)
    if steps.denoise:
        state = noise_free_end(process, score, state, steps.sampling_eps)
        report(n_evaluations - 1, grid[-1], steps.sampling_eps, {"end": state})
    return state, n_evaluations


@torch.no_grad()
def euler_maruyama(
    process: Process,
    score: ScoreFunction,
    state: torch.Tensor,
    steps: StepGrid,
    normal: Normal,
    on_step: OnStep | None = None,
) -> tuple[torch.Tensor, int]:
    """Euler-Maruyama steps of the reverse-time equation.

    Args:
        state: (B, k C, ...), a draw of the prior.
        steps: their number and spacing.
        normal: called once for each step but the denoising step.
        on_step: called with stages "mean" (the step without its noise; not for a denoising step) and "end".

    Returns:
        float64 state (B, k C, ...) and n_evaluations.

    Raises:
        UsageError: as ``StepGrid.times``.
    """

    def take_step(state: torch.Tensor, tau: float, tau_next: float) -> dict[str, torch.Tensor]:
        size = tau_next - tau
        mean = _noise_free_step(process, score, state, tau, size)
        noise = reverse_diffusion(process, state, _times(tau, state)) * math.sqrt(size) * normal()
        return {"mean": mean, "end": mean + noise}

    return _fixed_steps(process, score, state, take_step, steps, on_step)


@torch.no_grad()
def sscs(
    process: CriticallyDampedLangevin,
    score: ScoreFunction,
    state: torch.Tensor,
    steps: StepGrid,
    normal: Normal,
    repeat_first_half: bool = False,
    on_step: OnStep | None = None,
) -> tuple[torch.Tensor, int]:
    """The symmetric splitting sampler of CLD (Dockhorn et al., arXiv 2112.07068, Section 3.3 and Appendix D).

    Each step is an exact half step of the part that is an Ornstein-Uhlenbeck process, a full Euler step of
    the score part (score and beta at the start of the step), and a second exact half step.

    Args:
        normal: called twice for each step but the denoising step.
        repeat_first_half: let the second half step cover the first half of the interval again, not the
            second; the same thing for constant beta.
        on_step: called with stages "first_half", "score" and "end"; "end" alone for a denoising step.

    The other arguments, the result and the errors are those of euler_maruyama.
    """

    def take_step(state: torch.Tensor, tau: float, tau_next: float) -> dict[str, torch.Tensor]:
        middle = tau + (tau_next - tau) / 2
        start_times, middle_times, end_times = (_times(time, state) for time in (tau, middle, tau_next))
        first_half = process.reversed_langevin_step(state, start_times, middle_times, normal())

        t = 1 - start_times
        _, v = split(process, first_half)
        strength = process.diffusion_coefficient(t) ** 2 * (tau_next - tau)
        kick = expand(strength, v) * (score(first_half, t) + process.m_inv * v)
        after_score = first_half + driven(process, kick)

        interval = (start_times, middle_times) if repeat_first_half else (middle_times, end_times)
        end = process.reversed_langevin_step(after_score, *interval, normal())
        return {"first_half": first_half, "score": after_score, "end": end}

    return _fixed_steps(process, score, state, take_step, steps, on_step)


@torch.no_grad()
def probability_flow(
    process: Process,
    score: ScoreFunction,
    state: torch.Tensor,
    *,
    sampling_eps: float,
    solver: Solver,
    inputs_dtype: torch.dtype = torch.float64,
    on_evaluation: Callable[[int, float], None] | None = None,
) -> tuple[torch.Tensor, int]:
    """The probability-flow equation from the prior to tau = 1 - sampling_eps.

    Args:
        state: (B, k C, ...), a draw of the prior.
        solver, on_evaluation: as in diffusion.ode.solve; the time told is tau.
        inputs_dtype: to which state and tau are rounded before each right-hand side.

    Returns:
        float64 state (B, k C, ...) and the number of network evaluations.

    Raises:
        UsageError, RunFailed: as diffusion.ode.solve.
    """

    def right_hand_side(tau: torch.Tensor, parts: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        (u,) = parts
        u, tau = u.to(inputs_dtype), tau.to(inputs_dtype).double()
        times = tau.expand(len(u))
        return (probability_flow_drift(process, score(u, 1 - times), u, times),)

    (end,), n_evaluations = solve(
        right_hand_side,
        (state,),
        0.0,
        1 - sampling_eps,
        solver,
        on_evaluation,
    )
    return end, n_evaluations
