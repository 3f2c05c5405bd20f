"""Solvers, their count of evaluations, and what happens when they cannot go on."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from diffusion.ode import ADAPTIVE_SOLVERS, FIXED_STEP_SOLVERS
from tests.spelling import check_solver, solve
from util.errors import RunFailed, UsageError

START = (torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([0.5]))


def rotation_and_growth(t, state):
    u, g = state
    return torch.stack([-u[:, 1], u[:, 0]], 1), t * g


def exact(end):
    u, g = (part.double() for part in START)
    c, s = math.cos(end), math.sin(end)
    return u @ torch.tensor([[c, s], [-s, c]], dtype=torch.float64), g * math.exp(end**2 / 2)


@pytest.mark.parametrize("solver", ADAPTIVE_SOLVERS + FIXED_STEP_SOLVERS)
def test_solution_of_a_known_system(solver):
    n_steps = 20_000 if solver == "euler" else 200 if solver in FIXED_STEP_SOLVERS else None
    times = []
    state, n_evaluations = solve(
        rotation_and_growth,
        START,
        0.0,
        1.5,
        solver=solver,
        rtol=1e-6,
        atol=1e-8,
        n_steps=n_steps,
        on_evaluation=lambda n, t: times.append((n, t)),
    )
    for part, expected in zip(state, exact(1.5), strict=True):
        assert part.dtype == torch.float64
        torch.testing.assert_close(part, expected, rtol=2e-4, atol=0)
    assert [n for n, _ in times] == list(range(1, n_evaluations + 1))
    assert all(0 <= t <= 1.5 for _, t in times)
    if n_steps is not None:
        stages = {"euler": 1, "midpoint": 2, "rk4": 4}[solver]
        assert n_evaluations == stages * n_steps


@pytest.mark.parametrize("solver", ADAPTIVE_SOLVERS)
def test_nothing_is_evaluated_past_the_end(solver):
    """Not even where a slow solution invites a first step much longer than the interval."""
    times = []
    state, _ = solve(
        lambda t, state: (1e-3 * torch.ones_like(state[0]) * (1 - t).sqrt(),),
        (torch.full((3,), 1000.0),),
        0.0,
        1.0,
        solver=solver,
        rtol=1e-5,
        atol=1e-5,
        on_evaluation=lambda n, t: times.append(t),
    )
    assert all(0 <= t <= 1 for t in times)
    torch.testing.assert_close(
        state[0], torch.full((3,), 1000 + 2e-3 / 3, dtype=torch.float64), rtol=1e-7, atol=0
    )


def test_rk45_is_that_of_scipy():
    def derivative(t, flat):
        state = torch.from_numpy(flat[:4]).reshape(2, 2), torch.from_numpy(flat[4:])
        return torch.cat([part.flatten() for part in rotation_and_growth(t, state)]).numpy()

    start = np.concatenate([part.double().flatten() for part in START])
    expected = solve_ivp(derivative, [0.0, 1.5], start, method="RK45", rtol=1e-5, atol=1e-5)
    state, n_evaluations = solve(rotation_and_growth, START, 0.0, 1.5, solver="RK45", rtol=1e-5, atol=1e-5)
    assert n_evaluations == expected.nfev
    result = torch.cat([part.flatten() for part in state])
    torch.testing.assert_close(result, torch.from_numpy(expected.y[:, -1]), rtol=1e-12, atol=0)


@pytest.mark.parametrize("solver", ["RK45", "dopri5", "bosh3"])
def test_a_solution_that_blows_up_fails(solver):
    with pytest.raises(RunFailed, match=solver) as caught:
        solve(
            lambda _, state: (state[0] ** 2,), (torch.ones(1),), 0.0, 2.0, solver=solver, rtol=1e-5, atol=1e-5
        )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("solver", ["RK45", "dopri5", "rk4"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_derivative_that_is_not_finite_fails(solver, value):
    def derivative(t, state):
        return (torch.where(t > 0.5, value, 1.0) * torch.ones_like(state[0]),)

    n_steps = 10 if solver == "rk4" else None
    with pytest.raises(RunFailed, match="not finite"):
        solve(derivative, (torch.ones(3),), 0.0, 1.0, solver=solver, rtol=1e-5, atol=1e-5, n_steps=n_steps)


@pytest.mark.parametrize("solver", ["RK45", "dopri5"])
def test_what_on_evaluation_raises_ends_the_integration(solver):
    class Stop(Exception):
        pass

    def on_evaluation(n, t):  # noqa: ARG001
        if n == 5:
            raise Stop

    with pytest.raises(Stop):
        solve(
            rotation_and_growth,
            START,
            0.0,
            1.5,
            solver=solver,
            rtol=1e-5,
            atol=1e-5,
            on_evaluation=on_evaluation,
        )


@pytest.mark.parametrize(("solver", "n_steps"), [("RK54", None), ("RK45", 10), ("rk4", None), ("rk4", 0)])
def test_solvers_that_cannot_run_are_usage_errors(solver, n_steps):
    with pytest.raises(UsageError, match=solver) as caught:
        check_solver(solver, n_steps)
    assert "\n" not in str(caught.value)
