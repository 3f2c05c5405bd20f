"""Gaussian data and their exact score, for which likelihoods and samplers have to give known numbers.

Nothing here is a statistical estimate. With Hadamard probes, which are signs like any Rademacher probe, the
average of the divergence estimates is the divergence itself. And because the score of Gaussian data is
linear, the end state of a sampler is a linear function of its start and of every single draw, so its mean and
covariance follow from runs in which all of them are zero but one.
"""

import pytest
import torch
from scipy.linalg import hadamard

from diffusion.bits import gaussian_entropy
from diffusion.continuous.likelihood import negative_log_likelihood_terms
from diffusion.continuous.process import initial_state, n_components, split
from tests.diffusion.settings import DATA, EVERY_PROCESS, PROCESSES
from tests.spelling import euler_maruyama, ode_log_likelihood, probability_flow, sscs

SAMPLING_EPS = 1e-3
CLD_PROCESSES = [name for name in PROCESSES if "CLD" in name]


def normal_log_density(u, mean, covariance):
    return torch.distributions.MultivariateNormal(mean, covariance).log_prob(u)


def solve_with_exact_divergence(process, u0, start, tolerance):
    """Likelihood of each state with every column of a Hadamard matrix as its probe."""
    probes = torch.from_numpy(hadamard(u0.shape[1])).double()
    n_probes = len(probes)
    return ode_log_likelihood(
        process,
        DATA.score(process),
        u0.repeat_interleave(n_probes, dim=0),
        probes.repeat(len(u0), 1),
        start=start,
        solver="RK45",
        rtol=tolerance,
        atol=tolerance,
    )


def draw_states(process, n_samples):
    generator = torch.Generator().manual_seed(0)
    x = DATA.sample(torch.randn(n_samples, 2, generator=generator))
    return x, initial_state(process, x, torch.randn(n_samples, 2, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("name", EVERY_PROCESS)
def test_exact_score_is_the_gradient_of_the_exact_log_density(name):
    process = EVERY_PROCESS[name]
    for t in (0.0, 1e-3, 0.3, 1.0):
        u = draw_states(process, 5)[1].requires_grad_()
        density = normal_log_density(u, *DATA.marginal(process, t))
        gradient = split(process, torch.autograd.grad(density.sum(), u)[0])[-1]
        score = DATA.score(process)(u, torch.full((5,), t, dtype=torch.float64))
        torch.testing.assert_close(score, gradient)


@pytest.mark.parametrize("name", PROCESSES)
def test_marginal_is_the_data_at_the_start_and_the_prior_at_the_end(name):
    process = PROCESSES[name]
    mean, covariance = DATA.marginal(process, 0.0)
    torch.testing.assert_close(mean[:2], DATA.mean)
    torch.testing.assert_close(covariance[:2, :2], DATA.covariance)
    variances = torch.tensor(process.prior_standard_deviations, dtype=torch.float64) ** 2
    mean, covariance = DATA.marginal(process, 1.0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=0.02)
    torch.testing.assert_close(covariance, torch.diag(variances.repeat_interleave(2)), rtol=0, atol=0.02)


@pytest.mark.parametrize("name", EVERY_PROCESS)
def test_log_density_of_every_state_is_exact(name):
    """With the true density at t = 1 in place of the prior, nothing is left but the error of the solver."""
    process = EVERY_PROCESS[name]
    _, u0 = draw_states(process, 10)
    result = solve_with_exact_divergence(process, u0, start=SAMPLING_EPS, tolerance=1e-8)
    end_density = normal_log_density(result.final_state, *DATA.marginal(process, 1.0))
    log_density = (end_density + result.divergence).unflatten(0, (len(u0), -1)).mean(1)
    expected = normal_log_density(u0, *DATA.marginal(process, SAMPLING_EPS))
    torch.testing.assert_close(log_density, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", EVERY_PROCESS)
def test_likelihood_averages_to_the_entropy_of_the_data(name):
    """Within 0.01 nats, also for CLD: its bound -log p(x, v) - H(v) exceeds -log p(x) by the divergence of
    the drawn velocity's density from that of v given x, which is zero because v is independent of x at t =
    0."""
    process = EVERY_PROCESS[name]
    x, u0 = draw_states(process, 50)
    result = solve_with_exact_divergence(process, u0, start=1e-5, tolerance=1e-6)
    value = sum(negative_log_likelihood_terms(process, result).values()).unflatten(0, (len(u0), -1)).mean(1)

    # The same samples' true -log p(x, v) - H(v): its expectation is the entropy, so the difference has
    # none of the sampling error of either.
    control = -DATA.log_density(x)
    if process.velocity_variance is not None:
        velocity = torch.distributions.Normal(0.0, process.velocity_variance**0.5)
        control = control - velocity.log_prob(split(process, u0)[1]).sum(1)
        control = control - gaussian_entropy(process.velocity_variance, 2)
    assert (value - control).mean().abs() < 0.01
    assert (value - control).abs().max() < 0.1


def one_at_a_time(n_draws, dimension):
    """``normal`` whose draws are zero but for one entry, another one in each row: draw c has its ones in rows
    c * dimension and following. The last ``dimension`` + 1 rows never get noise."""
    n_rows = n_draws * dimension + dimension + 1
    count = 0

    def normal():
        nonlocal count
        draw = torch.zeros(n_rows, dimension, dtype=torch.float64)
        rows = torch.arange(dimension)
        draw[count * dimension + rows, rows] = 1.0
        count += 1
        return draw

    return normal, n_rows


def end_moments(process, run_sampler, n_draws):
    """Mean and covariance of a sampler's end state, when it starts from the exact state at t = 1."""
    dimension = n_components(process) * 2
    mean, covariance = DATA.marginal(process, 1.0)
    normal, n_rows = one_at_a_time(n_draws, dimension)
    start = mean.repeat(n_rows, 1)
    start[-dimension - 1 : -1] += torch.linalg.cholesky(covariance).T
    end, _ = run_sampler(process, DATA.score(process), start, normal)
    responses = end[:-1] - end[-1]
    return end[-1], responses.T @ responses


def error(process, moments, t):
    """Largest deviation of the position's moments from those at time t."""
    expected_mean, expected_covariance = DATA.marginal(process, t)
    mean, covariance = moments
    mean_error = (mean - expected_mean)[:2].abs().max()
    return max(mean_error, (covariance - expected_covariance)[:2, :2].abs().max()).item()


def fixed_step(sampler, n_evaluations, **options):
    def run(process, score, start, normal):
        return sampler(
            process,
            score,
            start,
            n_evaluations=n_evaluations,
            sampling_eps=SAMPLING_EPS,
            normal=normal,
            **{"striding": "linear", "denoise": False, **options},
        )

    return run


@pytest.mark.parametrize("name", PROCESSES)
def test_probability_flow_gives_the_exact_moments(name):
    process = PROCESSES[name]

    def run(process, score, start, normal):  # noqa: ARG001
        options = {"solver": "RK45", "rtol": 1e-8, "atol": 1e-8}
        return probability_flow(process, score, start, sampling_eps=SAMPLING_EPS, denoise=False, **options)

    moments = end_moments(process, run, n_draws=0)
    expected_mean, expected_covariance = DATA.marginal(process, SAMPLING_EPS)
    torch.testing.assert_close(moments[0], expected_mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(moments[1], expected_covariance, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("striding", ["linear", "quadratic"])
def test_euler_maruyama_converges_to_the_exact_moments(name, striding):
    process = PROCESSES[name]
    errors = []
    for n_steps in (40, 80):
        run = fixed_step(euler_maruyama, n_steps, striding=striding)
        errors.append(error(process, end_moments(process, run, n_draws=n_steps), SAMPLING_EPS))
    assert errors[1] < 0.05
    assert errors[1] < 0.6 * errors[0]


@pytest.mark.parametrize("name", CLD_PROCESSES)
def test_sscs_converges_to_the_exact_moments(name):
    process = PROCESSES[name]
    errors = []
    for n_steps in (25, 50):
        run = fixed_step(sscs, n_steps)
        errors.append(error(process, end_moments(process, run, n_draws=2 * n_steps), SAMPLING_EPS))
    assert errors[1] < 0.05
    assert errors[1] < 0.6 * errors[0]


@pytest.mark.parametrize("name", CLD_PROCESSES)
def test_sscs_is_exact_where_the_score_part_vanishes(name):
    """With the score -v / M of the prior only the exactly solved part is left, whatever the number of steps:
    unless the second half steps cover the wrong intervals, which does not matter for constant beta."""
    process = PROCESSES[name]
    start = torch.tensor([[1.0, -0.5], [0.3, 2.0]], dtype=torch.float64)
    first, last = (torch.full((2,), tau, dtype=torch.float64) for tau in (0.0, 1 - SAMPLING_EPS))
    expected = process.reversed_langevin_step(start, first, last, torch.zeros_like(start))

    def equilibrium_score(u, t):  # noqa: ARG001
        return -process.m_inv * split(process, u)[1]

    def run(published_behaviour):
        sampler = fixed_step(sscs, 3, published_behaviour=published_behaviour)
        return sampler(process, equilibrium_score, start, lambda: torch.zeros_like(start))[0]

    torch.testing.assert_close(run(False), expected)
    if process.schedule.beta1 == 0:
        torch.testing.assert_close(run(True), expected)
    else:
        assert (run(True) - expected).abs().max() > 0.001


@pytest.mark.parametrize("name", PROCESSES)
def test_the_denoising_step_ends_at_the_data(name):
    process = PROCESSES[name]
    n_evaluations = 101
    run = fixed_step(euler_maruyama, n_evaluations, denoise=True)
    assert error(process, end_moments(process, run, n_draws=n_evaluations - 1), 0.0) < 0.05


def test_sampling_the_data():
    noise = torch.randn(200_000, 2, generator=torch.Generator().manual_seed(0))
    x = DATA.sample(noise)
    torch.testing.assert_close(x.mean(0), DATA.mean, rtol=0, atol=0.01)
    torch.testing.assert_close(x.T.cov(), DATA.covariance, rtol=0, atol=0.01)
    assert -DATA.log_density(x).mean().item() == pytest.approx(DATA.entropy, abs=0.01)
