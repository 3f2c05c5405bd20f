"""The variational bound of Gaussian data under the exact score, whose entropy it must not fall below."""

import dataclasses

import pytest
import torch

from diffusion.continuous.bound import FORMS, prior_cross_entropy
from diffusion.continuous.gaussian import GaussianData
from tests.diffusion.settings import DATA, EVERY_PROCESS, WITHOUT_VELOCITY
from tests.spelling import ClosedFormTimes, variational_bound
from util.noise import Noise

EPS = 1e-3
N_SAMPLES = 1000


def model_of(name):
    """What a perfect network has learned: for VE the data with noise of sigma_min, which its kernel begins with."""
    process = EVERY_PROCESS[name]
    added = process.sigma_min**2 if name == "VE" else 0.0
    return GaussianData(DATA.mean, DATA.covariance + added * torch.eye(2, dtype=torch.float64))


def excess(name, score, *, n_times=10, seed=0, **options):
    """Bound minus -log p of the same samples, for each: in expectation over both the excess over the entropy."""
    process = EVERY_PROCESS[name]
    draws = Noise(seed, "bound", torch.arange(N_SAMPLES))
    x = DATA.sample(draws.normal(2))
    settings = {"form": "dsm", "offset": True, "importance": ClosedFormTimes(process, EPS), **options}
    terms = variational_bound(process, score, x, draws, n_times=n_times, smallest_time=EPS, **settings)
    return sum(terms.values()) + DATA.log_density(x)


@pytest.mark.parametrize("weighted", [True, False], ids=["importance", "uniform"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", WITHOUT_VELOCITY)
def test_the_exact_score_attains_the_entropy(name, form, weighted):
    process = EVERY_PROCESS[name]
    importance = ClosedFormTimes(process, EPS) if weighted else None
    values = excess(name, model_of(name).score(process), form=form, importance=importance)
    error = values.std() / N_SAMPLES**0.5
    print(f"{name} {form}: {DATA.entropy:.4f} nats, bound {values.mean():+.4f} from it, standard error {error:.4f}")
    assert abs(values.mean()) < 3 * error + 0.01
    assert error < 0.2 or not weighted


@pytest.mark.parametrize("name", WITHOUT_VELOCITY)
def test_a_wrong_score_gives_a_larger_bound(name):
    exact = model_of(name).score(EVERY_PROCESS[name])
    difference = excess(name, lambda u, t: 0.8 * exact(u, t)) - excess(name, exact)
    assert difference.mean() > 3 * difference.std() / N_SAMPLES**0.5


@pytest.mark.parametrize("name", WITHOUT_VELOCITY)
def test_published_estimates_have_the_same_expectation(name):
    process = EVERY_PROCESS[name]
    score = model_of(name).score(process)
    ours = excess(name, score)
    theirs = excess(name, score, published_behaviour=True, seed=1)
    error = (ours.var() + theirs.var()).sqrt() / N_SAMPLES**0.5
    print(f"{name}: variance of the bound {theirs.var():.4g} as published, {ours.var():.4g} with closed forms")
    assert abs(ours.mean() - theirs.mean()) < 4 * error
    assert ours.var() < 1.1 * theirs.var()


def test_without_the_length_of_the_interval_the_bound_is_too_large_or_too_small():
    """The public weight 1 of even times differs from 1 - eps by a factor that a long omitted interval shows."""
    process, eps = EVERY_PROCESS["VP"], 0.5
    draws = [Noise(0, "bound", torch.arange(4000)) for _ in range(2)]
    x = DATA.sample(torch.randn(4000, 2, generator=torch.Generator().manual_seed(0)))
    results = [
        variational_bound(
            process, lambda u, t: 0 * u, x, noise, n_times=10, smallest_time=eps, form="ssm",
            importance=None, offset=False, published_behaviour=published,
        )
        for noise, published in zip(draws, (False, True), strict=True)
    ]  # fmt: skip
    # With a score of zero only the drift is left: its integral over [eps, 1].
    ends = torch.tensor([eps, 1.0], dtype=torch.float64)
    drift = -2 * process.transition(ends)[:, 0, 0].log().diff().item()
    assert sum(results[0].values()).mean().item() == pytest.approx(
        drift + prior_cross_entropy(process, x).mean().item(), rel=1e-6
    )
    assert results[1]["integral"].mean().item() == pytest.approx(drift / (1 - eps), rel=0.02)


def test_the_offset_turns_the_bound_of_perturbed_data_into_one_of_the_data():
    """Without it the bound is the cross entropy of data with the noise of eps, here visibly more than the entropy."""
    process = EVERY_PROCESS["VP"]
    difference = excess("VP", DATA.score(process), offset=False) - excess("VP", DATA.score(process))
    marginal = dataclasses.replace(DATA, covariance=DATA.marginal(process, EPS)[1])
    error = difference.std() / N_SAMPLES**0.5
    assert abs(difference.mean() - (marginal.entropy - DATA.entropy)) < 4 * error
