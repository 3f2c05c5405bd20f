"""What samplers spend: network evaluations, noise, time grid; and how they stop."""

import math

import pytest
import torch

from diffusion.continuous.process import split
from diffusion.continuous.time_grid import STRIDINGS, reversed_time_grid
from tests.diffusion.settings import DATA, PROCESSES
from tests.spelling import euler_maruyama, probability_flow, sscs
from util.errors import UsageError

CLD = PROCESSES["CLD, linear beta"]
START = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
OPTIONS = {"sampling_eps": 1e-3, "striding": "quadratic"}


class CountedScore:
    def __init__(self, value=None):
        self.n_calls = 0
        self.value = value

    def __call__(self, u, t):
        self.n_calls += 1
        return DATA.score(CLD)(u, t) if self.value is None else torch.full_like(split(CLD, u)[1], self.value)


@pytest.mark.parametrize(("sampler", "draws_per_step"), [(euler_maruyama, 1), (sscs, 2)])
@pytest.mark.parametrize("denoise", [False, True])
def test_evaluations_and_draws(sampler, draws_per_step, denoise):
    score, n_draws, steps = CountedScore(), 0, []

    def normal():
        nonlocal n_draws
        n_draws += 1
        return torch.zeros_like(START)

    state, n_evaluations = sampler(
        CLD, score, START, n_evaluations=6, denoise=denoise, normal=normal, on_step=steps.append, **OPTIONS
    )
    assert score.n_calls == n_evaluations == 6
    assert n_draws == draws_per_step * (6 - denoise)
    assert state.shape == START.shape
    assert state.dtype == torch.float64
    assert [step.index for step in steps] == list(range(6))
    assert {step.n_steps for step in steps} == {6}
    assert sum(step.size for step in steps) == pytest.approx(1 - 1e-3 * (not denoise))
    assert torch.equal(steps[-1].stages["end"], state)


@pytest.mark.parametrize("denoise", [False, True])
def test_evaluations_of_the_probability_flow(denoise):
    score, seen = CountedScore(), []
    _, n_evaluations = probability_flow(
        CLD,
        score,
        START,
        sampling_eps=1e-3,
        denoise=denoise,
        solver="rk4",
        rtol=1e-5,
        atol=1e-5,
        n_steps=5,
        on_evaluation=lambda n, tau: seen.append(tau),
    )
    assert score.n_calls == n_evaluations == 20 + denoise
    assert (seen[0], seen[-1]) == (0.0, 1 - 1e-3)


@pytest.mark.parametrize("sampler", [euler_maruyama, sscs])
def test_on_step_can_stop(sampler):
    class Stop(Exception):
        pass

    def on_step(step):
        if step.index == 2:
            raise Stop

    score = CountedScore()
    options = {
        "n_evaluations": 9,
        "denoise": False,
        "normal": lambda: torch.zeros_like(START),
        "on_step": on_step,
    }
    with pytest.raises(Stop):
        sampler(CLD, score, START, **options, **OPTIONS)
    assert score.n_calls == 3


@pytest.mark.parametrize("sampler", [euler_maruyama, sscs])
def test_nan_is_not_hidden(sampler):
    options = {"n_evaluations": 3, "denoise": True, "normal": lambda: torch.zeros_like(START)}
    state, _ = sampler(CLD, CountedScore(math.nan), START, **options, **OPTIONS)
    assert split(CLD, state)[1].isnan().all()


@pytest.mark.parametrize("striding", STRIDINGS)
def test_time_grid(striding):
    grid = reversed_time_grid(7, 0.99, striding)
    assert grid.dtype == torch.float64
    assert (grid[0], grid[-1]) == (0.0, 0.99)
    sizes = grid.diff()
    assert (sizes > 0).all()
    expected = torch.full((6,), 0.0 if striding == "linear" else -2 * 0.99 / 49, dtype=torch.float64)
    torch.testing.assert_close(sizes.diff(), expected, rtol=0, atol=1e-15)


def test_bad_grids_are_usage_errors():
    with pytest.raises(UsageError, match="cubic"):
        reversed_time_grid(3, 1.0, "cubic")
    with pytest.raises(UsageError, match="steps"):
        # The one evaluation is the denoising step.
        euler_maruyama(
            CLD, CountedScore(), START, n_evaluations=1, denoise=True, normal=lambda: START, **OPTIONS
        )
