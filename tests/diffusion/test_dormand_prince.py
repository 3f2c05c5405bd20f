"""Our Dormand-Prince against SciPy's: the same evaluations at the same times, the same values up to rounding."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diffusion.dormand_prince import NotSolved, integrate
from diffusion.ode import Solver, solve
from tests.diffusion.by_scipy import solve_by_scipy

TOLERANCES = [(1e-3, 1e-6), (1e-5, 1e-5), (1e-9, 1e-11)]


def oscillator(t, state):  # noqa: ARG001
    """Van der Pol's, whose steep flanks reject many steps."""
    x, v = state
    return v, 20 * (1 - x**2) * v - x


def decay(t, state):  # noqa: ARG001
    """Rates from 0.1 to 300: at loose tolerances the method is kept at the edge of its stability."""
    rates = torch.logspace(-1, math.log10(300), 12, dtype=torch.float64).reshape(3, 4)
    return (-rates * state[0],)


def pulse(t, state):
    """Nothing happens until a narrow pulse, on which large steps are rejected."""
    return (1000 * torch.exp(-(((t - 0.7) / 0.002) ** 2)) * torch.ones_like(state[0]), -t * state[1])


def linear(t, state):
    return (torch.cos(3 * t) * state[0] - state[0].flip(0),)


def still(t, state):  # noqa: ARG001
    return (torch.zeros_like(state[0]),)


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


PROBLEMS = {
    "oscillator": (oscillator, (normal(5), normal(5)), 0.0, 3.0),
    "decay": (decay, (normal(3, 4),), 0.0, 2.0),
    "pulse": (pulse, (torch.zeros(3, dtype=torch.float64), normal(2, 2)), 0.0, 1.0),
    "linear": (linear, (normal(2, 3, 4),), -1.0, 2.0),
    "linear backwards": (linear, (normal(2, 3, 4),), 2.0, -1.0),
    "oscillator backwards": (oscillator, (0.1 * normal(4), 0.1 * normal(4)), 0.5, 0.0),
    "still": (still, (normal(3),), 0.0, 1.0),
    "from zero": (linear, (torch.zeros(4, dtype=torch.float64),), 0.0, 1.0),
    "no time": (linear, (normal(3),), 0.5, 0.5),
    "one number": (linear, (normal(1),), 0.0, 10.0),
}


@dataclass(frozen=True)
class Solved:
    state: tuple[torch.Tensor, ...]
    times: list[float]


def solve_here(right_hand_side, state, start, end, rtol, atol):
    times = []
    result, n_evaluations = solve(
        right_hand_side, state, start, end, Solver("RK45", rtol, atol), lambda _number, t: times.append(t)
    )
    assert n_evaluations == len(times)
    return Solved(result, times)


@pytest.mark.parametrize(("rtol", "atol"), TOLERANCES)
@pytest.mark.parametrize("name", PROBLEMS)
def test_evaluations_and_values_are_those_of_scipy(name, rtol, atol):
    expected = solve_by_scipy(*PROBLEMS[name], rtol=rtol, atol=atol)
    solved = solve_here(*PROBLEMS[name], rtol, atol)
    assert not expected.message
    assert len(solved.times) == expected.n_evaluations
    # Every evaluation is at the same time, those of rejected steps too. The error that sizes a step is a difference in
    # which all but about rtol of the state cancels, which leaves it so much rounding.
    for time, other in zip(solved.times, expected.times, strict=True):
        assert time == pytest.approx(other, rel=0, abs=1e-13 / rtol)
    for part, other in zip(solved.state, expected.state, strict=True):
        assert part.dtype == torch.float64
        torch.testing.assert_close(part, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["oscillator", "pulse"])
def test_the_problems_do_reject_steps(name):
    expected = solve_by_scipy(*PROBLEMS[name], rtol=1e-5, atol=1e-5)
    assert expected.n_evaluations > 2 + 6 * expected.n_steps


@pytest.mark.parametrize("backwards", [False, True])
def test_a_float32_state_and_derivative_are_integrated_in_float64(backwards):
    weight = torch.randn(6, 6, generator=torch.Generator().manual_seed(2))

    def network(t, state):
        return (torch.tanh(state[0].float() @ weight) * t.float(),)

    start, end = (1.0, 0.1) if backwards else (0.1, 1.0)
    state = (torch.randn(4, 6, generator=torch.Generator().manual_seed(3)),)
    expected = solve_by_scipy(network, state, start, end, rtol=1e-5, atol=1e-5)
    solved = solve_here(network, state, start, end, 1e-5, 1e-5)
    assert solved.state[0].dtype == torch.float64
    assert len(solved.times) == expected.n_evaluations
    # A state that differs in its last bit can round to another float32: a few times 6e-8 of a derivative.
    torch.testing.assert_close(solved.state[0], expected.state[0], rtol=0, atol=1e-6)


def test_a_chunk_takes_one_step_for_all_its_samples():
    def alone(part):
        return solve_here(decay, (part,), 0.0, 1.0, 1e-5, 1e-5).times

    both = normal(3, 4) * torch.tensor([[1.0], [1e-3], [1e3]], dtype=torch.float64)
    assert len({len(alone(both)), len(alone(both * 1e-2)), len(alone(both * 1e3))}) == 3


def test_a_step_that_becomes_too_small_fails_where_that_of_scipy_does():
    def blows_up(t, state):  # noqa: ARG001
        return (state[0] ** 2,)

    state = (torch.ones(2, dtype=torch.float64),)
    expected = solve_by_scipy(blows_up, state, 0.0, 2.0, rtol=1e-5, atol=1e-5)
    times = []

    def derivative(t, y):
        times.append(t)
        return y**2

    with pytest.raises(NotSolved, match="spacing"):
        integrate(derivative, state[0], 0.0, 2.0, rtol=1e-5, atol=1e-5)
    assert expected.message
    assert len(times) == expected.n_evaluations


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("number", [1, 2, 3, 4, 8, 11])
def test_the_evaluation_that_is_not_finite_is_named(value, number):
    times = []

    def derivative(t, y):
        times.append(t)
        bad = torch.zeros_like(y)
        bad[1] = value
        return torch.ones_like(y) if len(times) != number else bad

    with pytest.raises(NotSolved, match="not finite") as caught:
        integrate(derivative, torch.ones(3, dtype=torch.float64), 0.0, 1.0, rtol=1e-5, atol=1e-5)
    assert f"t = {times[number - 1]:g} " in str(caught.value)
    assert len(times) - number < 6


def test_derivatives_whose_sum_overflows_are_finite():
    def derivative(t, y):  # noqa: ARG001
        return torch.full_like(y, 1e307)

    initial = torch.zeros(40, dtype=torch.float64)
    result = integrate(derivative, initial, 0.0, 1e-2, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result, torch.full_like(result, 1e305), rtol=1e-12, atol=0)


def test_a_scale_of_zero_fails_and_does_not_go_on_for_ever():
    with pytest.raises(NotSolved, match="spacing"):
        integrate(lambda _t, y: torch.zeros_like(y), torch.zeros(2, dtype=torch.float64), 0.0, 1.0, rtol=1e-5, atol=0.0)


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for the device of a tensor, but for ``tolist``."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        self.number += any(word in name for word in ("_local_scalar_dense", "nonzero", "masked_select"))
        return function(*args, **(kwargs or {}))


def test_the_host_reads_one_small_vector_a_step(monkeypatch):
    read = []
    to_list = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: read.append(len(tensor)) or to_list(tensor))
    right_hand_side, state, start, end = PROBLEMS["oscillator"]
    with Waits() as waits:
        _, n_evaluations = solve(right_hand_side, state, start, end, Solver("RK45", 1e-5, 1e-5))
    n_steps, rest = divmod(n_evaluations - 2, 6)
    assert rest == 0
    assert read == [3, 2] + [8] * n_steps
    assert waits.number == 0
