"""Discrete diffusion against data for which everything is known: normal data, whose best noise prediction is linear."""

import math

import pytest
import torch

from diffusion.discrete.bound import grey_level_log_probability, normal_divergence
from diffusion.discrete.ddim import ancestral_sampling as ancestral
from diffusion.discrete.ddim import ddim
from diffusion.discrete.ddpm import VARIANCES, noise_prediction_loss, noised, posterior_mean, reverse_variances
from diffusion.discrete.schedule import LARGEST_COSINE_BETA, choose_labels, cosine_betas, teacher_labels
from tests.spelling import discrete_variational_bound as variational_bound
from tests.spelling import make_schedule
from util.errors import UsageError
from util.noise import Noise

DEVIATION = 0.3
SCHEDULE = make_schedule("linear", 200)


def best_prediction(schedule):
    """The expected noise in a state of N(0, DEVIATION^2) data."""

    def predict(state, labels):
        alpha_bar = schedule.alphas_bar[labels].reshape(-1, 1, 1, 1)
        one_minus = schedule.one_minus_alphas_bar[labels].reshape(-1, 1, 1, 1)
        return (state.double() * one_minus.sqrt() / (alpha_bar * DEVIATION**2 + one_minus)).float()

    return predict


@pytest.mark.parametrize("kind", ["linear", "cosine"])
@pytest.mark.parametrize("published", [False, True])
def test_schedules_are_consistent(kind, published):
    schedule = make_schedule(kind, 1000, published)
    for values in (schedule.betas, schedule.alphas_bar, schedule.one_minus_alphas_bar):
        assert values.dtype == torch.float64
        assert ((values > 0) & (values <= 1)).all()
    tolerance = 1e-6 if published else 1e-12
    torch.testing.assert_close(schedule.alphas_bar + schedule.one_minus_alphas_bar, torch.ones(1000).double())
    torch.testing.assert_close((1 - schedule.betas).cumprod(0), schedule.alphas_bar, rtol=100 * tolerance, atol=0)
    again = schedule.subset(torch.arange(1000))
    torch.testing.assert_close(again.betas, schedule.betas, rtol=1e-3 if published else 1e-10, atol=0)


def test_smallest_variance_is_exact_unless_published():
    assert make_schedule("linear", 1000).one_minus_alphas_bar[0].item() == pytest.approx(1e-4, rel=1e-12)
    published = make_schedule("linear", 1000, published_behaviour=True).one_minus_alphas_bar[0].item()
    assert published == pytest.approx(1e-4, rel=1e-3)
    assert published != pytest.approx(1e-4, rel=1e-5)


def test_schedules_of_other_lengths_have_the_same_noise_at_the_same_time():
    assert cosine_betas(1000)[-1] == LARGEST_COSINE_BETA
    # Where a label of 1,000 steps lies among the 4,000 of the finer schedule, by the noise alone.
    coarse, fine = make_schedule("cosine", 1000), make_schedule("cosine", 4000)
    labels = torch.tensor([0, 1, 499, 900, 998])
    finer = (fine.alphas_bar[:, None] - coarse.alphas_bar[labels]).abs().argmin(0)
    torch.testing.assert_close(fine.alphas_bar[finer], coarse.alphas_bar[labels], rtol=1e-9, atol=0)
    torch.testing.assert_close(teacher_labels(labels, 1000, 4000), finer.double() / 4)
    torch.testing.assert_close(teacher_labels(labels, 1000, 1000), labels.double())


def test_chosen_labels():
    assert choose_labels("uniform", 4, 10).tolist() == [0, 2, 4, 6]
    assert choose_labels("uniform", 1000).tolist() == list(range(1000))
    assert choose_labels("quad", 6).tolist() == [0, 32, 128, 288, 512, 800]
    for bad in (("uniform", 0), ("uniform", 1001), ("quad", 100), ("cubic", 5)):
        with pytest.raises(UsageError):
            choose_labels(*bad)


def test_posterior_is_that_of_the_joint_normal_distribution():
    """Mean and variance of the earlier state by conditioning its joint normal distribution with the later one."""
    schedule = SCHEDULE.subset(torch.tensor([3, 40, 41, 150]))
    x, state = torch.tensor([[0.7]] * 4).double(), torch.tensor([[-0.2]] * 4).double()
    index = torch.arange(4)
    mean = posterior_mean(schedule, x, state, index)
    for i in range(1, 4):
        earlier, keep = schedule.one_minus_alphas_bar[i - 1], (1 - schedule.betas[i]).sqrt()
        gain = keep * earlier / (keep**2 * earlier + schedule.betas[i])
        prior_mean = schedule.alphas_bar[i - 1].sqrt() * x[i]
        torch.testing.assert_close(mean[i], prior_mean + gain * (state[i] - keep * prior_mean))
        torch.testing.assert_close(schedule.posterior_variances[i], earlier * (1 - gain * keep))
    torch.testing.assert_close(mean[0], x[0])
    assert schedule.posterior_variances[0] == 0


def test_loss_is_that_of_the_best_prediction():
    n = 20_000
    noise = Noise(0, "test", torch.arange(n))
    x, z, index = DEVIATION * noise.normal(1, 1, 1), noise.normal(1, 1, 1), noise.integers(len(SCHEDULE))
    losses = noise_prediction_loss(best_prediction(SCHEDULE), SCHEDULE, x, index, z)
    assert losses.dtype == torch.float64
    signal = SCHEDULE.alphas_bar * DEVIATION**2
    expected = (signal / (signal + SCHEDULE.one_minus_alphas_bar)).mean()
    assert losses.mean().item() == pytest.approx(expected.item(), rel=0.05)
    # The mean over entries, not the sum.
    wide = noise_prediction_loss(lambda state, _: torch.zeros_like(state), SCHEDULE, x[:5], index[:5], z[:5])
    torch.testing.assert_close(wide, z[:5].flatten().double() ** 2)


def linear_run(sampler, schedule, **settings):
    """The end of a sampler, which is linear in its start and in every draw: the coefficient of each, float64 (S,).

    In run i all of them are 0 but the i-th, which is 1.
    """
    places = iter(range(1, len(schedule)))

    def only(place):
        return (torch.arange(len(schedule)) == place).double()[:, None, None, None]

    predict = best_prediction(SCHEDULE)
    end, n_evaluations = sampler(predict, schedule, only(0), normal=lambda: only(next(places)), clip=False, **settings)
    assert n_evaluations == len(schedule)
    return end.flatten()


@pytest.mark.parametrize(
    ("sampler", "settings"),
    [(ddim, {"eta": 0.0}), (ddim, {"eta": 0.5}), (ddim, {"eta": 1.0})]
    + [(ancestral, {"variance": variance}) for variance in VARIANCES],
)
def test_samplers_give_the_deviation_of_the_data(sampler, settings):
    coefficients = linear_run(sampler, SCHEDULE, **settings)
    assert coefficients.square().sum().sqrt().item() == pytest.approx(DEVIATION, rel=0.06)
    n_draws = int((coefficients[1:] != 0).sum())
    assert n_draws == (0 if settings.get("eta") == 0 else len(SCHEDULE) - 1)


def test_ddim_with_eta_1_is_ancestral_sampling():
    schedule = SCHEDULE.subset(choose_labels("quad", 6, len(SCHEDULE)))
    torch.testing.assert_close(
        linear_run(ddim, schedule, eta=1.0), linear_run(ancestral, schedule, variance="fixed-small")
    )


@pytest.mark.parametrize(("sampler", "settings"), [(ddim, {"eta": 0.3}), (ancestral, {"variance": "fixed-large"})])
def test_samplers_end_with_the_clipped_prediction_and_tell_every_step(sampler, settings):
    schedule = SCHEDULE.subset(choose_labels("uniform", 5, len(SCHEDULE)))
    told = []
    noise = Noise(0, "test", torch.arange(3))
    end, _ = sampler(
        lambda state, _: -10 * torch.ones_like(state),
        schedule,
        noise.normal(1, 2, 2),
        normal=lambda: noise.normal(1, 2, 2),
        clip=True,
        on_step=lambda *step: told.append(step),
        **settings,
    )
    assert [step for step, _, _ in told] == list(range(5))
    assert all((data.abs() <= 1).all() for _, _, data in told)
    torch.testing.assert_close(end, torch.ones_like(end))
    torch.testing.assert_close(told[-1][1], end)


def test_clipped_ddim_takes_the_direction_of_the_clipped_data():
    """With the data known after clipping, every state has to be one that the data and some noise could give."""
    schedule = SCHEDULE.subset(torch.tensor([20, 199]))
    start = torch.full((1, 1, 1, 1), 2.0).double()
    states = []
    ddim(
        lambda state, _: -5 * torch.ones_like(state), schedule, start,
        normal=lambda: torch.zeros(1), eta=0.0, clip=True, on_step=lambda _, state, __: states.append(state),
    )  # fmt: skip
    noise = (2.0 - schedule.alphas_bar[1].sqrt()) / schedule.one_minus_alphas_bar[1].sqrt()
    expected = schedule.alphas_bar[0].sqrt() + schedule.one_minus_alphas_bar[0].sqrt() * noise
    assert states[0].item() == pytest.approx(expected.item(), rel=1e-12)


# ---- the bound


def test_divergence_of_normals():
    p = torch.distributions.Normal(torch.tensor([0.3, -1.0]).double(), torch.tensor([0.5, 0.5]).double())
    q = torch.distributions.Normal(torch.tensor([0.0, 0.2]).double(), torch.tensor([0.9, 0.9]).double())
    expected = torch.distributions.kl_divergence(p, q).sum()
    ours = normal_divergence((p.mean - q.mean)[None], p.variance[:1], q.variance[:1])
    torch.testing.assert_close(ours[0], expected)


@pytest.mark.parametrize("deviation", [0.01, 0.3])
@pytest.mark.parametrize("mean", [-1.2, -0.999, 0.1, 1.0])
def test_grey_levels_have_probabilities_that_add_up_to_one(deviation, mean):
    x = (torch.arange(256).double() / 127.5 - 1)[:, None]
    log_p = grey_level_log_probability(x, torch.full_like(x, mean), torch.tensor(deviation).double())
    assert log_p.exp().sum().item() == pytest.approx(1.0, rel=1e-12)
    assert log_p.isfinite().all()
    normal = torch.distributions.Normal(mean, torch.tensor(deviation).double())
    level = 130
    inside = normal.cdf(torch.tensor(level + 0.5) / 127.5 - 1) - normal.cdf(torch.tensor(level - 0.5) / 127.5 - 1)
    if inside > 1e-9:
        assert log_p[level].exp().item() == pytest.approx(inside.item(), rel=1e-4)


def test_improbable_grey_levels_keep_their_logarithm():
    deviation = torch.tensor(0.01).double()
    log_p = grey_level_log_probability(torch.tensor([[0.0]]), torch.tensor([[1.0]]), deviation)
    edge = (1 - 1 / 255) / 0.01
    assert log_p.item() == pytest.approx(-(edge**2) / 2 - math.log(edge * math.sqrt(2 * math.pi)), rel=1e-3)


def bound_of_every_level(schedule, variance, n_draws, n_labels=None):
    """Terms of the bound, averaged over draws, for one-pixel images of every eighth grey level; float64 (32,) each."""
    levels = torch.arange(256)[4::8]
    x = (levels / 127.5 - 1).repeat_interleave(n_draws)[:, None, None, None]
    noise = Noise(3, "test", torch.arange(len(x)))
    terms, n_evaluations = variational_bound(
        best_prediction(schedule),
        schedule,
        x,
        normal=lambda: noise.normal(1, 1, 1),
        uniform=lambda: noise.uniform(dtype=torch.float64),
        variance=variance,
        clip=False,
        n_labels=n_labels,
    )
    assert n_evaluations == (n_labels or len(schedule) - 1) + 1
    return {name: values.reshape(32, n_draws).mean(1) for name, values in terms.items()}


@pytest.mark.parametrize(("variance", "largest"), [("fixed-small", 0.75), ("fixed-large", 0.15)])
def test_bound_of_normal_data_is_close_to_their_entropy(variance, largest):
    schedule = make_schedule("cosine", 300)
    terms = bound_of_every_level(schedule, variance, n_draws=16)
    assert set(terms) == {"prior", "diffusion", "decoder"}
    x = torch.arange(256)[4::8] / 127.5 - 1
    exact = -grey_level_log_probability(x[:, None], torch.zeros(32, 1), torch.tensor(DEVIATION).double())
    weight = (-exact).exp() / (-exact).exp().sum()
    bound = sum(terms.values())
    excess = ((bound - exact) * weight).sum()
    assert 0 < excess < largest
    for name, values in terms.items():
        assert (values > 0).all(), name


def test_bound_at_some_labels_has_the_same_expectation():
    schedule = make_schedule("linear", 60)
    every = bound_of_every_level(schedule, "fixed-small", n_draws=256)
    some = bound_of_every_level(schedule, "fixed-small", n_draws=2048, n_labels=7)
    torch.testing.assert_close(some["prior"], every["prior"])
    torch.testing.assert_close(some["diffusion"].mean(), every["diffusion"].mean(), rtol=0.05, atol=0)


def test_noised_states_have_the_variance_of_their_label():
    x = torch.zeros(1, 1, 1, 1)
    for label in (0, 100):
        state = noised(SCHEDULE, x, torch.tensor([label]), torch.ones(1, 1, 1, 1))
        assert state.item() ** 2 == pytest.approx(SCHEDULE.one_minus_alphas_bar[label].item(), rel=1e-12)
    assert reverse_variances(SCHEDULE, "fixed-small")[0] == SCHEDULE.posterior_variances[1]
    assert (reverse_variances(SCHEDULE, "fixed-large")[1:] == SCHEDULE.betas[1:]).all()
