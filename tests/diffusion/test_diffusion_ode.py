"""i-DODE on data whose velocity is known: likelihoods equal the entropy, bounds lie above it."""

import math

import pytest
import torch

from diffusion.log_snr.bound import prior_term
from diffusion.log_snr.dequantization import Dequantized, dequantize_within_levels, truncated_normal, truncation
from diffusion.log_snr.levels import level_log_probabilities
from diffusion.log_snr.likelihood import ode_drift
from diffusion.log_snr.schedule import StraightPath, VariancePreservingPath, end_point
from diffusion.log_snr.velocity import NoisePrediction, VelocityPrediction
from tests.diffusion.exact_velocities import SCALE, GaussianPixels, LevelPixels
from tests.spelling import (
    decode,
    dequantize_uniformly,
    dequantize_variationally,
    diffusion_terms,
    importance_weighted_terms,
    integrate_with_divergence,
    ode_likelihood_terms,
    ode_sample,
    reconstruction_term,
)
from util.noise import Noise

KINDS = {"VP": VariancePreservingPath, "SP": StraightPath}
GAUSSIAN = GaussianPixels()
# Noise at gamma_min that reaches over several levels, so that dequantization costs something.
GAMMA_MIN, GAMMA_MAX = -8.0, 16.0
LEVELS = LevelPixels(
    torch.tensor([40, 42, 43, 90, 128, 131, 133, 250]),
    torch.tensor([0.2, 0.05, 0.15, 0.1, 0.25, 0.05, 0.15, 0.05], dtype=torch.float64),
)
N_PIXELS = 4
SOLVER = {"solver": "RK45", "rtol": 1e-6, "atol": 1e-6}
VELOCITY = VelocityPrediction()


def drift_of(data, schedule):
    return ode_drift(schedule, VELOCITY, lambda z, gamma: data.velocity(schedule, z, gamma))


@pytest.mark.parametrize("name", KINDS)
def test_likelihood_of_gaussian_data_is_exact(name):
    schedule = KINDS[name](-13.3, GAMMA_MAX)
    marginal = GAUSSIAN.marginal(schedule, schedule.gamma_min)
    n, d = 400, 3
    z = marginal.mean + marginal.stddev * Noise(0, "test", torch.arange(n)).normal(1, 1, d).double()
    terms, _ = ode_likelihood_terms(
        schedule, drift_of(GAUSSIAN, schedule), Dequantized(z, schedule.gamma_min, {}), None, **SOLVER
    )
    value = sum(terms.values())
    torch.testing.assert_close(value, -marginal.log_prob(z).flatten(1).sum(1), rtol=0, atol=2e-3)
    error = value.std() / math.sqrt(n)
    assert abs(value.mean() - d * marginal.entropy()) < 3 * error + 2e-3


@pytest.mark.parametrize("name", KINDS)
def test_samples_of_gaussian_data(name):
    schedule = KINDS[name](-13.3, GAMMA_MAX)
    noise = Noise(0, "test", torch.arange(2)).normal(1, 1, 3)
    z, _ = ode_sample(schedule, drift_of(GAUSSIAN, schedule), noise, **SOLVER)
    # The flow between Gaussians is affine.
    start, end = GAUSSIAN.marginal(schedule, schedule.gamma_max), GAUSSIAN.marginal(schedule, schedule.gamma_min)
    _, sigma = end_point(schedule, schedule.gamma_max)
    expected = end.mean + end.stddev * (sigma * noise.double() - start.mean) / start.stddev
    torch.testing.assert_close(z, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_noise_prediction_defines_the_same_drift(name):
    schedule = KINDS[name](-13.3, GAMMA_MAX)
    noise = Noise(0, "test", torch.arange(5))
    z, true_noise = noise.normal(1, 1, 3).double(), noise.normal(1, 1, 3).double()
    gamma = torch.linspace(-13, 12, 5, dtype=torch.float64)
    velocity = VELOCITY.target(schedule, z, true_noise, gamma)
    by_velocity = VELOCITY.drift(schedule, velocity, z, gamma)
    by_noise = NoisePrediction().drift(schedule, true_noise, z, gamma)
    torch.testing.assert_close(by_velocity, by_noise, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", KINDS)
def test_bound_is_not_below_the_entropy(name):
    schedule = KINDS[name](-13.3, GAMMA_MAX)
    n = 4000
    noise = Noise(0, "test", torch.arange(n))
    levels = LEVELS.sample(n, N_PIXELS)
    x = SCALE.centers(levels)
    terms = {
        "reconstruction": reconstruction_term(schedule, levels, noise.normal(1, 1, N_PIXELS), SCALE),
        "prior": prior_term(schedule, x),
        **diffusion_terms(
            schedule, VELOCITY, lambda z, gamma: LEVELS.velocity(schedule, z, gamma), x,
            noise.uniform(dtype=torch.float64), noise.normal(1, 1, N_PIXELS).double(), importance=True,
        ),
    }  # fmt: skip
    value = sum(terms.values())
    error, entropy = value.std() / math.sqrt(n), N_PIXELS * LEVELS.entropy
    assert (terms["prior"] >= 0).all()
    # With the exact velocity the bound is nearly tight at this gamma_min.
    assert -3 * error < value.mean() - entropy < 4 * error + 0.02 * entropy


@pytest.mark.parametrize("name", KINDS)
def test_importance_sampled_gamma_has_the_same_expectation_and_less_variance(name):
    schedule = KINDS[name](-13.3, 5.0)
    n = 20_000
    noise = Noise(0, "test", torch.arange(n))
    x = GAUSSIAN.mean + math.sqrt(GAUSSIAN.variance) * noise.normal(1, 1, N_PIXELS).double()
    t, eps = noise.uniform(dtype=torch.float64), noise.normal(1, 1, N_PIXELS).double()

    def imperfect(z, gamma):
        return 0.5 * GAUSSIAN.velocity(schedule, z, gamma)

    sampled, uniform = (
        diffusion_terms(schedule, VELOCITY, imperfect, x, t, eps, importance=importance)["diffusion"]
        for importance in (True, False)
    )
    print(f"{name}: variance {sampled.var():.4g} with importance-sampled gamma, {uniform.var():.4g} with uniform gamma")
    error = ((sampled.var() + uniform.var()) / n).sqrt()
    assert abs(sampled.mean() - uniform.mean()) < 4 * error
    assert sampled.var() < uniform.var()


@pytest.mark.parametrize("name", KINDS)
def test_second_order_residual_is_zero_on_average_for_the_exact_velocity(name):
    schedule = KINDS[name](-4.0, 4.0)
    n = 20_000
    noise = Noise(0, "test", torch.arange(n))
    x = GAUSSIAN.mean + math.sqrt(GAUSSIAN.variance) * noise.normal(1, 1, 1).double()
    eps, probe = noise.normal(1, 1, 1).double(), noise.rademacher(1, 1, 1)
    for t in (0.1, 0.5, 0.9):
        gamma = schedule.gamma_min + (schedule.gamma_max - schedule.gamma_min) * torch.full((n,), t).double()
        calls = []

        def predict(z, gamma, calls=calls):
            calls.append((z, GAUSSIAN.velocity(schedule, z, gamma)))
            return calls[-1][1]

        terms = diffusion_terms(
            schedule, VELOCITY, predict, x, torch.full((n,), t), eps,
            importance=False, probe=probe, second_order_weight=1.0,
        )  # fmt: skip
        ((z, prediction),) = calls
        error = (VELOCITY.target(schedule, z, eps, gamma) - prediction).square().flatten()
        (slope,) = torch.autograd.grad(prediction.sum(), z)
        alpha, sigma = schedule.alpha(gamma), schedule.sigma(gamma)
        residual = (
            sigma * slope.flatten()
            - (1 - schedule.state_share(gamma) * sigma) / (schedule.velocity_scale * alpha)
            + schedule.velocity_scale * alpha * error
        ).detach()
        assert abs(residual.mean()) < 4 * residual.std() / math.sqrt(n)
        weight = terms["diffusion"] / error
        torch.testing.assert_close(terms["second_order"], weight * residual.square(), rtol=1e-4, atol=1e-9)


def test_second_order_objective_does_not_train_the_squared_error():
    schedule = VariancePreservingPath(-4.0, 4.0)
    noise = Noise(0, "test", torch.arange(4))
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    x, eps, probe = (noise.normal(1, 1, 2).double() for _ in range(3))

    def predict(z, _gamma):
        # Moves the error and not the divergence.
        return z.tanh() + shift

    terms = diffusion_terms(
        schedule, VELOCITY, predict, x, noise.uniform(), eps, importance=True, probe=probe, second_order_weight=0.1
    )
    (of_first,) = torch.autograd.grad(terms["diffusion"].sum(), shift, retain_graph=True)
    assert of_first != 0
    (of_second,) = torch.autograd.grad(terms["second_order"].sum(), shift, allow_unused=True)
    assert of_second is None or of_second == 0


def model_log_probability(schedule, levels, kind):
    """log of the probability that the model gives each image, by quadrature over each pixel."""
    _, sigma = end_point(schedule, schedule.gamma_min)
    alpha, _ = end_point(schedule, schedule.gamma_min)
    distinct = LEVELS.levels
    if kind == "variational":
        reach = torch.linspace(-9, 9, 4001, dtype=torch.float64) * sigma
        z = alpha * SCALE.centers(distinct)[:, None] + reach
        decoded = level_log_probabilities(z / alpha, distinct[:, None], sigma / alpha, SCALE)
        log_integrand, width = LEVELS.log_density(schedule, z, schedule.gamma_min) + decoded, reach[1] - reach[0]
    else:
        gamma = schedule.gamma_min
        reach = ((torch.arange(400, dtype=torch.float64) + 0.5) / 200 - 1) / SCALE.n_levels
        factor = alpha if kind == "truncated_normal" else 1.0
        z = factor * (SCALE.centers(distinct)[:, None] + reach)
        log_integrand, width = LEVELS.log_density(schedule, z, gamma), factor * (reach[1] - reach[0])
    table = torch.full((SCALE.n_levels,), math.nan, dtype=torch.float64)
    table[distinct] = (log_integrand.logsumexp(-1) + width.log()).reshape(-1)
    return table[levels.long()].flatten(1).sum(1)


def dequantize(schedule, levels, kind, noise, mean_entropy):
    shape = levels.shape[1:]
    if kind == "uniform":
        return dequantize_uniformly(schedule, levels, noise.uniform(*shape), SCALE)
    if kind == "variational":
        return dequantize_variationally(schedule, levels, noise.normal(*shape), SCALE, mean_entropy=mean_entropy)
    truncated = truncated_normal(noise.uniform(*shape, dtype=torch.float64), truncation(schedule, SCALE))
    return dequantize_within_levels(schedule, levels, truncated, SCALE, mean_entropy=mean_entropy)


@pytest.mark.parametrize("kind", ["uniform", "variational", "truncated_normal"])
@pytest.mark.parametrize("name", KINDS)
def test_more_importance_samples_tighten_the_bound_and_never_pass_the_truth(name, kind):
    schedule = KINDS[name](GAMMA_MIN, 9.0)
    n, n_draws = 150, 8
    levels, noise = LEVELS.sample(n, N_PIXELS), Noise(0, "test", torch.arange(n))
    truth = -model_log_probability(schedule, levels, kind)
    drift = drift_of(LEVELS, schedule)
    draws = []
    for k in range(n_draws):
        start = dequantize(schedule, levels, kind, noise, mean_entropy=False)
        # One solve of many samples costs what one of few does; the looser tolerance is far below the errors here.
        draws.append(ode_likelihood_terms(schedule, drift, start, None, solver="RK45", rtol=1e-4, atol=1e-4)[0])
        if kind == "uniform":
            draws[-1]["scaling"] = torch.full_like(truth, N_PIXELS * math.log(SCALE.n_levels / 2))
        if k == 0 and kind != "uniform":
            # A mean over draws of the sample entropy is the closed form.
            closed = dequantize(schedule, levels, kind, Noise(0, "other", torch.arange(n)), mean_entropy=True)
    gaps = {}
    for k in (1, 3, n_draws):
        value = sum(importance_weighted_terms(draws[:k]).values())
        gap = value - truth
        error = gap.std() / math.sqrt(n)
        gaps[k] = gap.mean().item()
        assert gaps[k] > -3 * error - 1e-3, f"K = {k}"
    if kind == "variational":
        assert gaps[n_draws] < 0.7 * gaps[3] < 0.5 * gaps[1]
    else:
        assert gaps[n_draws] < 0.02 * N_PIXELS
    if kind != "uniform":
        sampled = torch.stack([terms["entropy"] for terms in draws])
        error = sampled.std() / math.sqrt(sampled.numel())
        assert abs(sampled.mean() - closed.terms["entropy"].mean()) < 4 * error
    # With the logarithm of K left out the truth is passed.
    passed = sum(importance_weighted_terms(draws, published_behaviour=True).values())
    torch.testing.assert_close(passed, value - math.log(n_draws))


def test_terms_add_up_with_importance_samples():
    draws = [{"a": torch.tensor([float(k)]), "b": torch.tensor([1.0])} for k in range(3)]
    terms = importance_weighted_terms(draws)
    expected = -math.log(sum(math.exp(-k - 1.0) for k in range(3)) / 3)
    assert sum(terms.values()).item() == pytest.approx(expected)
    assert set(terms) == {"a", "b", "importance_sampling"}
    assert set(importance_weighted_terms(draws[:1])) == {"a", "b"}


def test_truncated_normals_fill_their_interval():
    tau = 0.7
    t = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    values = truncated_normal(t, tau)
    assert (values.abs() <= tau).all()
    density = math.exp(-(tau**2) / 2) / math.sqrt(2 * math.pi)
    variance = 1 - 2 * tau * density / math.erf(tau / math.sqrt(2))
    assert values.var().item() == pytest.approx(variance, rel=1e-4)
    assert truncated_normal(torch.tensor([0.0]), 40.0).isfinite().all()


@pytest.mark.parametrize("standard_deviation", [1e-4, 0.0013, 0.02, 0.5, 30.0])
def test_probabilities_of_levels_add_up_to_one(standard_deviation):
    x = torch.linspace(-1.2, 1.2, 41, dtype=torch.float64)[:, None]
    log_probabilities = level_log_probabilities(x, torch.arange(256), standard_deviation, SCALE)
    torch.testing.assert_close(log_probabilities.exp().sum(1), torch.ones(41, dtype=torch.float64))
    logits = -((x - SCALE.centers(torch.arange(256))) / standard_deviation).square() / 2
    torch.testing.assert_close(log_probabilities, logits.log_softmax(1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", KINDS)
def test_clean_images_decode_to_themselves(name):
    schedule = KINDS[name](-13.3, 5.0)
    levels = torch.arange(256).reshape(1, 1, 16, 16)
    alpha, _ = end_point(schedule, schedule.gamma_min)
    assert torch.equal(decode(schedule, alpha * SCALE.centers(levels), SCALE), levels)
    unit = levels.float() / 255
    assert torch.equal((unit * 255).to(torch.uint8).long(), levels)  # whether cut off or rounded


def test_divergence_of_a_linear_drift():
    x = torch.zeros(2, 3, dtype=torch.float64) + 1.0
    final, divergence, _ = integrate_with_divergence(
        lambda x, t: 0.5 * x, x, None, 0.0, 2.0, solver="RK45", rtol=1e-8, atol=1e-8
    )
    torch.testing.assert_close(final, x * math.e, rtol=1e-6, atol=0)
    torch.testing.assert_close(divergence, torch.full((2,), 3.0, dtype=torch.float64))
