"""Schedules, importance-sampled gamma and weights against the recorded ones."""

import pytest
import torch

from diffusion.log_snr.bound import loss_weight
from diffusion.log_snr.schedule import (
    antithetic_times,
    importance_gammas,
    importance_normaliser,
    log_alpha_slope,
    uniform_gammas,
)
from tests.golden.idode_setup import DTYPES, TOLERANCE, assert_near, groups, make_schedule, parameterisation
from tests.golden.vectors import load


@pytest.mark.parametrize("group", groups("schedule"))
@pytest.mark.parametrize("precision", DTYPES)
def test_schedule(group, precision):
    arrays = load("idode", "schedule")
    schedule = make_schedule(arrays, group)
    prefix, tolerance = f"{precision}/{group}/", TOLERANCE[precision]
    gamma, t = (torch.from_numpy(arrays[f"in/{name}"]) for name in ("gamma", "t"))
    remaining = {key for key in arrays if key.startswith(prefix)}

    def near(name, actual):
        assert_near(actual, arrays[prefix + name], tolerance, prefix + name)
        remaining.discard(prefix + name)

    near("alpha", schedule.alpha(gamma))
    near("sigma", schedule.sigma(gamma))
    near("dlogalpha_dgamma", log_alpha_slope(schedule, gamma))
    if f"{prefix}cum_weight" in arrays:
        start = torch.tensor(schedule.gamma_min, dtype=torch.float64)
        near("cum_weight", schedule.remaining_weight(start) - schedule.remaining_weight(gamma))
    for velocity, importance in ((True, True), (True, False), (False, False)):
        case = f"vel{velocity:d}_imp{importance:d}/"
        gamma_t = (importance_gammas if importance else uniform_gammas)(schedule, t)
        near(f"{case}gamma_t", gamma_t)
        weight = loss_weight(schedule, parameterisation(velocity), gamma_t, importance=importance)
        near(f"{case}weight", weight)
        if importance:
            near(f"{case}Z", importance_normaliser(schedule))
    t0 = torch.from_numpy(arrays["in/antithetic_t0"]).double()
    n = len(arrays[f"{prefix}antithetic_t"])
    times = antithetic_times(t0, torch.arange(n), n)
    near("antithetic_t", times)
    near("antithetic_gamma", importance_gammas(schedule, times))
    assert not remaining
