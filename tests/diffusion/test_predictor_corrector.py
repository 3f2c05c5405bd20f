"""Predictor-corrector sampling of Gaussian data under their exact score, and what a sample depends on."""

import pytest
import torch

from diffusion.continuous.predictor_corrector import denoising_chain_step as denoise
from diffusion.continuous.prior import prior_sample
from diffusion.tensors import expand
from tests.diffusion.settings import EVERY_PROCESS, WITHOUT_VELOCITY
from tests.spelling import annealed_langevin, langevin, predictor_corrector
from util.errors import UsageError

DIMENSIONS = 64
MEAN, VARIANCE = 0.3, 0.25


def exact_score(process):
    """Of independent numbers N(MEAN, VARIANCE), with the kernel of training."""

    def score(x, t):
        alpha, deviation = process.transition(t)[:, 0, 0], process.kernel_factor(t)[:, 0, 0]
        return -(x - expand(alpha * MEAN, x)) / expand(alpha**2 * VARIANCE + deviation**2, x)

    return score


def sample(name, n_samples=300, seed=0, **options):
    process = EVERY_PROCESS[name]
    generator = torch.Generator().manual_seed(seed)

    def normal():
        return torch.randn(n_samples, DIMENSIONS, generator=generator, dtype=torch.float64)

    settings = {
        "predictor": "reverse_diffusion", "corrector": "langevin", "n_steps": 100, "snr": 0.16, "n_corrector_steps": 1,
        "sampling_eps": 1e-3, "denoise": True, "normal": normal, **options,
    }  # fmt: skip
    return predictor_corrector(process, exact_score(process), prior_sample(process, normal()), **settings)


@pytest.mark.parametrize(
    ("predictor", "corrector"),
    [("reverse_diffusion", "langevin"), ("ancestral_sampling", "none"), ("euler_maruyama", "ald")],
)
@pytest.mark.parametrize("name", WITHOUT_VELOCITY)
def test_samples_have_the_moments_of_the_data(name, predictor, corrector):
    """Within the error of a hundred steps; sub-VP with Langevin steps too, where the public code fails."""
    x, n_evaluations = sample(name, predictor=predictor, corrector=corrector)
    assert x.mean().item() == pytest.approx(MEAN, abs=0.05)
    assert x.var().item() == pytest.approx(VARIANCE, rel=0.2)
    assert n_evaluations == (100 if corrector == "none" else 200)


def test_more_steps_come_closer():
    errors = [abs(sample("VP", corrector="none", n_steps=n)[0].var().item() - VARIANCE) for n in (30, 300)]
    assert errors[1] < 0.5 * errors[0]


def test_without_its_noise_the_last_step_ends_at_the_data():
    """VP at time 0.01: the noise that is left is most of the variance of a narrow distribution."""
    process = EVERY_PROCESS["VP"]
    t = torch.tensor([0.001], dtype=torch.float64)
    deviation = process.kernel_factor(t).item()
    generator = torch.Generator().manual_seed(0)
    state = deviation * torch.randn(1, 10_000, generator=generator, dtype=torch.float64)

    def score(x, _t):
        return -x / deviation**2

    assert denoise(process, score, state, 0.001).std() < 0.2 * state.std()


@pytest.mark.parametrize("published", [False, True])
def test_a_langevin_step_depends_on_the_batch_as_published_only(published):
    process = EVERY_PROCESS["VP"]
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 4, DIMENSIONS, generator=generator, dtype=torch.float64)
    x *= torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None]
    t = torch.full((4,), 0.3, dtype=torch.float64)

    def step(rows):
        return langevin(
            process, exact_score(process), x[rows], t[rows], [noise[rows]], 100, 0.16, published_behaviour=published
        )[0]

    difference = (step(slice(0, 4))[:1] - step(slice(0, 1))).abs().max()
    assert difference > 1e-3 if published else difference == 0


def test_the_signal_to_noise_ratio_may_differ_from_step_to_step():
    constant, _ = sample("VP", n_samples=4)
    given, _ = sample("VP", n_samples=4, snr=[0.16] * 100)
    other, _ = sample("VP", n_samples=4, snr=[0.16] * 99 + [0.01])
    assert torch.equal(constant, given)
    assert not torch.equal(constant, other)


def test_langevin_steps_keep_the_marginal():
    process = EVERY_PROCESS["sub-VP"]
    t = torch.full((500,), 0.2, dtype=torch.float64)
    alpha, deviation = process.transition(t)[0, 0, 0], process.kernel_factor(t)[0, 0, 0]
    generator = torch.Generator().manual_seed(0)
    normals = torch.randn(41, 500, DIMENSIONS, generator=generator, dtype=torch.float64)
    variance = alpha**2 * VARIANCE + deviation**2
    x = alpha * MEAN + variance.sqrt() * normals[0]
    x, _ = annealed_langevin(process, exact_score(process), x, t, list(normals[1:]), 1000, 0.1)
    assert x.mean().item() == pytest.approx((alpha * MEAN).item(), abs=0.01)
    assert x.var().item() == pytest.approx(variance.item(), rel=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"predictor": "heun"}, "heun"),
        ({"corrector": "hmc"}, "hmc"),
        ({"predictor": "none", "corrector": "none"}, "nothing would be sampled"),
        ({"n_steps": 1}, "at least 2"),
    ],
)
def test_bad_settings_are_usage_errors(options, message):
    with pytest.raises(UsageError, match=message) as caught:
        sample("VP", n_samples=2, **options)
    assert "\n" not in str(caught.value)
