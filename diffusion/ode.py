"""Initial value problems, with the number of right-hand-side evaluations (NFE)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torchdiffeq import odeint

from diffusion.dormand_prince import NotSolved, integrate
from util.errors import RunFailed, UsageError

_AS_SCIPY = ("RK45", "scipy_solver")
ADAPTIVE_SOLVERS = (*_AS_SCIPY, "dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
FIXED_STEP_SOLVERS = ("euler", "midpoint", "rk4")

State = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Solver:
    """How an initial value problem is solved.

    Attributes:
        name: "RK45" (also "scipy_solver"): Dormand-Prince 5(4) with the steps of SciPy's; or another one of
            ADAPTIVE_SOLVERS and FIXED_STEP_SOLVERS. All run where the state is.
        rtol, atol: tolerances of an adaptive solver.
        n_steps: number of equal steps, for a solver with fixed steps only.

    Raises:
        UsageError: if there is no such solver, or it and a number of steps do not go together.
    """

    name: str
    rtol: float = 1e-5
    atol: float = 1e-5
    n_steps: int | None = None

    def __post_init__(self) -> None:
        if self.name in ADAPTIVE_SOLVERS:
            if self.n_steps is not None:
                raise UsageError(
                    f"ODE solver {self.name} chooses its own steps: leave out the number of steps ({self.n_steps})"
                )
        elif self.name in FIXED_STEP_SOLVERS:
            if self.n_steps is None or self.n_steps < 1:
                raise UsageError(
                    f"ODE solver {self.name} has fixed steps: give their number, at least 1 (it is {self.n_steps})"
                )
        else:
            known = ", ".join(ADAPTIVE_SOLVERS + FIXED_STEP_SOLVERS)
            raise UsageError(f"ODE solver {self.name!r} is unknown: choose one of {known}")


@torch.no_grad()
def solve(
    right_hand_side: Callable[[torch.Tensor, State], State],
    state: State,
    start: float,
    end: float,
    solver: Solver,
    on_evaluation: Callable[[int, float], None] | None = None,
) -> tuple[State, int]:
    """Integrate dy/dt = right_hand_side(t, y) from ``start`` to ``end``, which may be the smaller one.

    All entries of all samples form one system with one step size and one error norm, the root mean square
    over everything, so that the result of a sample depends (within tolerance) on the batch it is in.

    Args:
        right_hand_side: t float64 scalar and y to the derivative, a tuple shaped like y.
        state: y at ``start``, tensors on one device; integrated in float64.
        solver: method, tolerances and steps.
        on_evaluation: called after each right-hand side with their number so far and the time; what it raises
            ends the integration.

    Returns:
        y at ``end``, float64, and the number of right-hand sides evaluated.

    Raises:
        RunFailed: if a derivative is not finite or the step size underflows.
    """
    shapes = [part.shape for part in state]
    sizes = [part.numel() for part in state]
    n_evaluations = 0

    def flatten(parts: State) -> torch.Tensor:
        return torch.cat([part.reshape(-1).double() for part in parts])

    def unflatten(vector: torch.Tensor) -> State:
        parts = vector.split(sizes)
        return tuple(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))

    def counted(t: torch.Tensor, told: float, vector: torch.Tensor) -> torch.Tensor:
        nonlocal n_evaluations
        derivative = flatten(right_hand_side(t, unflatten(vector)))
        n_evaluations += 1
        if on_evaluation is not None:
            on_evaluation(n_evaluations, told)
        return derivative

    def at_number(t: float, vector: torch.Tensor) -> torch.Tensor:
        return counted(torch.full((), t, dtype=torch.float64, device=vector.device), t, vector)

    def at_tensor(t: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        # The trial evaluation that sizes the first step of an adaptive solver can lie past the end.
        t = t.clamp(min(start, end), max(start, end))
        derivative = counted(t, t.item(), vector)
        if not derivative.isfinite().all():
            raise NotSolved(f"the derivative at t = {t.item():g} is not finite")
        return derivative

    initial = flatten(state)
    try:
        if solver.name in _AS_SCIPY:
            final = integrate(at_number, initial, start, end, rtol=solver.rtol, atol=solver.atol)
        else:
            final = _solve_elsewhere(at_tensor, initial, start, end, solver)
    except NotSolved as error:
        raise RunFailed(
            f"ODE solver {solver.name} failed between t = {start:g} and {end:g} after {n_evaluations} evaluations "
            f"(rtol {solver.rtol:g}, atol {solver.atol:g}): {error}; loosen the tolerances or check the network's "
            "weights"
        ) from error
    return unflatten(final), n_evaluations


def _solve_elsewhere(
    derivative: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    initial: torch.Tensor,
    start: float,
    end: float,
    solver: Solver,
) -> torch.Tensor:
    """By torchdiffeq. Raises NotSolved."""
    times = torch.tensor([start, end], dtype=torch.float64, device=initial.device)
    grid = None if solver.n_steps is None else torch.linspace(start, end, solver.n_steps + 1, dtype=torch.float64)
    # An adaptive step would otherwise go past the end, where a process need not be defined.
    options: dict[str, object] = (
        {"step_t": times[1:]} if grid is None else {"grid_constructor": lambda *_: grid.to(times)}
    )
    try:
        path = odeint(
            derivative, initial, times, rtol=solver.rtol, atol=solver.atol, method=solver.name, options=options
        )
    except AssertionError as error:
        raise NotSolved(str(error)) from error
    return path[-1]
