"""Schedules in log-SNR time: their defining equations, importance sampling, antithetic times."""

import math

import pytest
import torch
import torch.nn.functional as F
from scipy.integrate import quad

from diffusion.log_snr.schedule import (
    StraightPath,
    VariancePreservingPath,
    antithetic_times,
    importance_gammas,
    importance_normaliser,
    log_alpha_slope,
)
from util.errors import UsageError

KINDS = [VariancePreservingPath, StraightPath]
RANGES = [(-13.3, 5.0), (-60.0, 60.0), (-2.0, -1.0), (-90.0, -80.0), (30.0, 70.0)]


@pytest.mark.parametrize("kind", KINDS)
def test_defining_equations(kind):
    schedule = kind(-60.0, 60.0)
    gamma = torch.linspace(-60, 60, 241, dtype=torch.float64, requires_grad=True)
    alpha, sigma = schedule.alpha(gamma), schedule.sigma(gamma)
    torch.testing.assert_close(2 * (sigma.log() - alpha.log()), gamma, rtol=1e-14, atol=1e-14)
    whole = alpha + sigma if kind is StraightPath else alpha**2 + sigma**2
    torch.testing.assert_close(whole, torch.ones_like(whole))
    log_alpha = F.logsigmoid(-gamma / 2) if kind is StraightPath else F.logsigmoid(-gamma) / 2
    torch.testing.assert_close(alpha.log(), log_alpha, rtol=1e-9, atol=1e-15)
    (slope,) = torch.autograd.grad(log_alpha.sum(), gamma)
    torch.testing.assert_close(log_alpha_slope(schedule, gamma), slope, rtol=1e-13, atol=0)
    (change,) = torch.autograd.grad(schedule.remaining_weight(gamma).sum(), gamma)
    torch.testing.assert_close(-change, schedule.alpha(gamma) ** 2, rtol=1e-10, atol=0)
    share, scale = schedule.state_share(gamma), schedule.velocity_scale
    torch.testing.assert_close(
        (schedule.isotropic_divergence(gamma) * scale * alpha + share * sigma), torch.ones_like(gamma)
    )


@pytest.mark.parametrize("ends", RANGES)
@pytest.mark.parametrize("kind", KINDS)
def test_inverse_to_the_last_digits(kind, ends):
    schedule = kind(*ends)
    gamma = torch.linspace(*ends, 1001, dtype=torch.float64)
    weight = schedule.remaining_weight(gamma)
    found = schedule.gamma_of_remaining_weight(weight)
    # What one rounding of the weight moves gamma by, and one of gamma itself.
    allowed = 64 * torch.finfo(torch.float64).eps * (weight / schedule.alpha(gamma) ** 2 + gamma.abs() + 1)
    assert ((found - gamma).abs() <= allowed).all()


@pytest.mark.parametrize("kind", KINDS)
def test_density_of_importance_sampled_gamma(kind):
    schedule = kind(-13.3, 5.0)

    def weight(gamma: float) -> float:
        return schedule.alpha(torch.tensor(gamma, dtype=torch.float64)).item() ** 2

    total = quad(weight, -13.3, 5.0, epsabs=0, epsrel=1e-11)[0]
    assert importance_normaliser(schedule) == pytest.approx(total, rel=1e-11)
    t = torch.tensor([0.0, 0.1, 0.5, 0.9, 0.999], dtype=torch.float64)
    for fraction, gamma in zip(t.tolist(), importance_gammas(schedule, t).tolist(), strict=True):
        assert quad(weight, -13.3, gamma)[0] / total == pytest.approx(fraction, abs=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_impossible_ranges(kind):
    for ends in ((5.0, -13.3), (1.0, 1.0), (-200.0, 5.0), (math.nan, 5.0)):
        with pytest.raises(UsageError, match="gamma_min"):
            kind(*ends)


@pytest.mark.parametrize("n", [1, 8, 49, 98, 103, 107, 196])
def test_antithetic_times_are_even_over_the_whole_batch(n):
    start = torch.tensor(0.637, dtype=torch.float64)
    times = antithetic_times(start, torch.arange(n), n)
    assert len(times) == n
    assert ((times >= 0) & (times < 1)).all()
    gaps = times.sort().values.diff()
    torch.testing.assert_close(gaps, torch.full_like(gaps, 1 / n), rtol=0, atol=1e-15)
    # The same ones however the batch is cut.
    pieces = [antithetic_times(start, places, n) for places in torch.arange(n).split(7)]
    assert torch.equal(torch.cat(pieces), times)
