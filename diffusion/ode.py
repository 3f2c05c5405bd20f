"""Initial value problems, with the number of right-hand-side evaluations (NFE)."""

from collections.abc import Callable

import numpy as np
import torch
from scipy.integrate import RK45
from torchdiffeq import odeint

from util.errors import RunFailed, UsageError

_SCIPY_SOLVERS = ("RK45", "scipy_solver")
ADAPTIVE_SOLVERS = (*_SCIPY_SOLVERS, "dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
FIXED_STEP_SOLVERS = ("euler", "midpoint", "rk4")

State = tuple[torch.Tensor, ...]


def check_solver(solver: str, n_steps: int | None) -> None:
    """Whether ``solve`` can run with these.

    Raises:
        UsageError: if there is no such solver, or it and a number of steps do not go together.
    """
    if solver in ADAPTIVE_SOLVERS:
        if n_steps is not None:
            raise UsageError(
                f"ODE solver {solver} chooses its own steps: leave out the number of steps ({n_steps})"
            )
    elif solver in FIXED_STEP_SOLVERS:
        if n_steps is None or n_steps < 1:
            raise UsageError(
                f"ODE solver {solver} has fixed steps: give their number, at least 1 (it is {n_steps})"
            )
    else:
        known = ", ".join(ADAPTIVE_SOLVERS + FIXED_STEP_SOLVERS)
        raise UsageError(f"ODE solver {solver!r} is unknown: choose one of {known}")


@torch.no_grad()
def solve(
    right_hand_side: Callable[[torch.Tensor, State], State],
    state: State,
    start: float,
    end: float,
    *,
    solver: str,
    rtol: float,
    atol: float,
    n_steps: int | None = None,
    on_evaluation: Callable[[int, float], None] | None = None,
) -> tuple[State, int]:
    """Integrate dy/dt = right_hand_side(t, y) from ``start`` to ``end``.

    All entries of all samples form one system with one step size and one error norm, the root mean square
    over everything, so that the result of a sample depends (within tolerance) on the batch it is in.

    Args:
        right_hand_side: t float64 scalar and y to the derivative, a tuple shaped like y.
        state: y at ``start``, tensors on one device; integrated in float64.
        solver: "RK45" (also "scipy_solver"): SciPy's Dormand-Prince 5(4) on the host, with right-hand sides
            on the device; ADAPTIVE_SOLVERS and FIXED_STEP_SOLVERS otherwise run on the device.
        rtol, atol: tolerances of an adaptive solver.
        n_steps: number of equal steps, for a solver with fixed steps only.
        on_evaluation: called after each right-hand side with their number so far and the time; what it raises
            ends the integration.

    Returns:
        y at ``end``, float64, and the number of right-hand sides evaluated.

    Raises:
        UsageError: as check_solver.
        RunFailed: if a derivative is not finite or the step size underflows.
    """
    check_solver(solver, n_steps)
    shapes = [part.shape for part in state]
    sizes = [part.numel() for part in state]
    n_evaluations = 0

    def flatten(parts: State) -> torch.Tensor:
        return torch.cat([part.reshape(-1).double() for part in parts])

    def unflatten(vector: torch.Tensor) -> State:
        parts = vector.split(sizes)
        return tuple(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))

    def failure(reason: str) -> RunFailed:
        return RunFailed(
            f"ODE solver {solver} failed between t = {start:g} and {end:g} after {n_evaluations} evaluations "
            f"(rtol {rtol:g}, atol {atol:g}): {reason}; loosen the tolerances or check the network's weights"
        )

    def counted(t: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        nonlocal n_evaluations
        # The trial evaluation that sizes the first step of an adaptive solver can lie past the end.
        t = t.clamp(max=end)
        derivative = flatten(right_hand_side(t, unflatten(vector)))
        n_evaluations += 1
        # SciPy's step control never ends once a step size is NaN, so this cannot wait for the result.
        if not derivative.isfinite().all():
            raise failure(f"the derivative at t = {t.item():g} is not finite")
        if on_evaluation is not None:
            on_evaluation(n_evaluations, t.item())
        return derivative

    initial = flatten(state)
    if solver in _SCIPY_SOLVERS:
        final = _solve_on_host(counted, initial, start, end, rtol, atol, failure)
    else:
        times = torch.tensor([start, end], dtype=torch.float64, device=initial.device)
        grid = None if n_steps is None else torch.linspace(start, end, n_steps + 1, dtype=torch.float64)
        # An adaptive step would otherwise go past the end, where a process need not be defined.
        options: dict[str, object] = (
            {"step_t": times[1:]} if grid is None else {"grid_constructor": lambda *_: grid.to(times)}
        )
        try:
            final = odeint(counted, initial, times, rtol=rtol, atol=atol, method=solver, options=options)[-1]
        except AssertionError as error:
            raise failure(str(error)) from error
    return unflatten(final), n_evaluations


def _solve_on_host(
    right_hand_side: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    initial: torch.Tensor,
    start: float,
    end: float,
    rtol: float,
    atol: float,
    failure: Callable[[str], RunFailed],
) -> torch.Tensor:
    """SciPy's RK45 step by step, so that no path is stored and a failed step is noticed."""
    device = initial.device

    def on_host(t: float, vector: np.ndarray) -> np.ndarray:
        time = torch.tensor(t, dtype=torch.float64, device=device)
        return right_hand_side(time, torch.from_numpy(vector).to(device)).cpu().numpy()

    stepper = RK45(on_host, start, initial.cpu().numpy(), end, rtol=rtol, atol=atol)
    while stepper.status == "running":
        message = stepper.step()
    if stepper.status == "failed":
        raise failure(str(message))
    return torch.from_numpy(stepper.y).to(device)
