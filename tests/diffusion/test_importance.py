"""Importance-sampled times: the density they claim, the same objective, less variance."""

import pytest
import torch
from scipy.integrate import quad

from diffusion.continuous.importance import ImportanceTimes
from diffusion.continuous.kernel import loss_multiplier, noise_multiplier
from diffusion.continuous.losses import score_matching_loss, scoreflow_loss
from tests.diffusion.settings import DATA, EVERY_PROCESS, PROCESSES, WITHOUT_VELOCITY
from tests.spelling import ClosedFormTimes
from util.errors import UsageError
from util.noise import Noise

LOSS_EPS = 1e-3


@pytest.mark.parametrize("name", PROCESSES)
def test_times_have_the_density_of_the_weight(name):
    process = PROCESSES[name]
    importance = ImportanceTimes(process, LOSS_EPS)

    def weight(t: float) -> float:
        times = torch.tensor([t], dtype=torch.float64)
        return (loss_multiplier(process, times) * noise_multiplier(process, times) ** 2).item()

    total = quad(weight, LOSS_EPS, 1.0, limit=500, epsrel=1e-9)[0]
    assert importance.normaliser == pytest.approx(total / (1 - LOSS_EPS), rel=1e-5)
    for fraction in (0.0, 0.1, 0.5, 0.9, 0.999):
        t = importance.times(torch.tensor([fraction])).item()
        assert quad(weight, LOSS_EPS, t, limit=500)[0] / total == pytest.approx(fraction, abs=1e-5)


@pytest.mark.parametrize("name", PROCESSES)
def test_same_expectation_and_smaller_variance(name):
    process = PROCESSES[name]
    n = 40_000
    noise = Noise(0, "test", torch.arange(n))
    x = DATA.sample(noise.normal(2)).float()
    uniform = noise.uniform(dtype=torch.float64)
    z = noise.normal(2 * len(process.prior_standard_deviations))

    def wrong_score(u, t):
        return 0.5 * DATA.score(process)(u.double(), t).float()

    losses = [
        score_matching_loss(
            process, wrong_score, x, uniform, z, noise.normal(2), weighting="likelihood", loss_eps=LOSS_EPS,
            importance=importance,
        )
        for importance in (None, ImportanceTimes(process, LOSS_EPS))
    ]  # fmt: skip
    plain, sampled = losses
    error = ((plain.var() + sampled.var()) / n).sqrt()
    assert abs(plain.mean() - sampled.mean()) < 4 * error
    assert sampled.var() < plain.var()


@pytest.mark.parametrize("loss_eps", [1e-6, 1e-3])
@pytest.mark.parametrize("name", WITHOUT_VELOCITY)
def test_the_closed_form_agrees_with_the_table(name, loss_eps):
    process = EVERY_PROCESS[name]
    closed, tabulated = ClosedFormTimes(process, loss_eps), ImportanceTimes(process, loss_eps)
    assert closed.normaliser == pytest.approx(tabulated.normaliser, rel=1e-6)
    uniform = torch.cat([torch.zeros(1), torch.rand(200, generator=torch.Generator().manual_seed(0)), torch.ones(1)])
    times = closed.times(uniform)
    torch.testing.assert_close(times, tabulated.times(uniform), rtol=1e-5, atol=0)
    assert times[0].item() == pytest.approx(loss_eps, rel=1e-9)
    assert times[-1].item() == pytest.approx(1.0, rel=1e-9)
    by_bisection = ClosedFormTimes(process, loss_eps, published_behaviour=True).times(uniform)
    torch.testing.assert_close(times, by_bisection, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["VP", "sub-VP"])
def test_the_closed_form_has_the_same_expectation_and_smaller_variance(name):
    """Of the likelihood-weighted loss for a score that is wrong by a half."""
    process = EVERY_PROCESS[name]
    n = 40_000
    noise = Noise(1, "test", torch.arange(n))
    x, z = DATA.sample(noise.normal(2)), noise.normal(2, dtype=torch.float64)
    uniform = noise.uniform(dtype=torch.float64)

    def wrong_score(u, t):
        return 0.5 * DATA.score(process)(u, t)

    importance = ClosedFormTimes(process, LOSS_EPS)
    options = {"weighting": "likelihood", "loss_eps": LOSS_EPS, "reduce_mean": False}
    plain = scoreflow_loss(process, wrong_score, x, uniform, z, importance=None, **options)
    sampled = scoreflow_loss(process, wrong_score, x, uniform, z, importance=importance, **options)
    sampled = sampled * 2 * importance.normaliser  # G^2 is twice the loss multiplier
    print(f"{name}: variance {plain.var():.4g} with uniform times, {sampled.var():.4g} with importance sampling")
    error = ((plain.var() + sampled.var()) / n).sqrt()
    assert abs(plain.mean() - sampled.mean()) < 4 * error
    assert sampled.var() < plain.var()


def test_only_for_the_likelihood_weighting():
    process = PROCESSES["VP"]
    x = torch.zeros(2, 2)
    with pytest.raises(UsageError, match="likelihood"):
        score_matching_loss(
            process, lambda u, t: u, x, torch.rand(2), torch.randn(2, 2),
            weighting="reweightedv2", loss_eps=LOSS_EPS, importance=ImportanceTimes(process, LOSS_EPS),
        )  # fmt: skip
