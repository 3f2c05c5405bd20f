"""Transition and covariance against the differential equations that define them, and bad settings."""

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from diffusion.continuous.cld import CriticallyDampedLangevin
from diffusion.continuous.kernel import noise_multiplier, perturb
from diffusion.continuous.noise_schedule import LinearBeta
from diffusion.continuous.process import apply, initial_state, n_components, split, state_shape
from diffusion.continuous.vp import VariancePreserving
from tests.diffusion.settings import EVERY_PROCESS, PROCESSES
from util.errors import UsageError

TIMES = torch.tensor([1e-5, 1e-3, 0.03, 0.4, 1.0], dtype=torch.float64)


@pytest.mark.parametrize("name", EVERY_PROCESS)
def test_moments_solve_their_differential_equations(name):
    """dm/dt = F m and dS/dt = F S + S F^T + G G^T, from a mean and variances that are not special."""
    process = EVERY_PROCESS[name]
    k = n_components(process)
    variances = [0.3, 0.7][:k]

    def derivative(t, flat):
        transition, covariance = flat.reshape(2, k, k)
        time = torch.tensor(t, dtype=torch.float64)
        F = process.drift_matrix(time).numpy()
        noise = np.zeros((k, k))
        noise[-1, -1] = process.diffusion_coefficient(time).item() ** 2
        return np.stack([F @ transition, F @ covariance + covariance @ F.T + noise]).reshape(-1)

    start = np.stack([np.eye(k), np.diag(variances)]).reshape(-1)
    solution = solve_ivp(derivative, [0, 1], start, t_eval=TIMES, rtol=1e-11, atol=1e-13, method="DOP853")
    factor = process.covariance_factor(TIMES, variances)
    for i in range(len(TIMES)):
        transition, covariance = solution.y[:, i].reshape(2, k, k)
        np.testing.assert_allclose(process.transition(TIMES)[i], transition, rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose((factor @ factor.mT)[i], covariance, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", EVERY_PROCESS)
def test_kernel_is_finite_and_positive_down_to_tiny_times(name):
    t = torch.logspace(-12, 0, 200, dtype=torch.float64)
    factor = EVERY_PROCESS[name].kernel_factor(t)
    assert factor.isfinite().all()
    assert (factor.diagonal(dim1=-2, dim2=-1) > 0).all()
    assert (noise_multiplier(EVERY_PROCESS[name], t) < 0).all()


@pytest.mark.parametrize("name", PROCESSES)
def test_the_kernel_forgets_the_data_for_the_prior(name):
    process = PROCESSES[name]
    prior = torch.diag(torch.tensor(process.prior_standard_deviations, dtype=torch.float64))
    end = torch.tensor(1.0, dtype=torch.float64)
    torch.testing.assert_close(process.kernel_factor(end), prior, rtol=0, atol=0.01)
    torch.testing.assert_close(process.transition(end), torch.zeros_like(prior), rtol=0, atol=0.05)


def test_conditional_variance_without_numerical_eps_keeps_its_digits():
    """Sigma_vv - Sigma_xv^2 / Sigma_xx of the hsm kernel tends to 2/3 M q for q = 2 B / sqrt(M) far below
    gamma."""
    beta0, m_inv, gamma = 4.0, 4.0, 0.04
    process = CriticallyDampedLangevin(LinearBeta(beta0, 0.0), m_inv, gamma, 0.0, "hsm")
    t = torch.logspace(-12, -9, 4, dtype=torch.float64)
    conditional_variance = process.kernel_factor(t)[:, 1, 1] ** 2
    q = 2 * m_inv**0.5 * beta0 * t
    torch.testing.assert_close(conditional_variance, 2 / 3 * q / m_inv, rtol=1e-5, atol=0)


def test_two_reversed_langevin_steps_make_one():
    process = PROCESSES["CLD, linear beta"]
    taus = [torch.tensor([tau], dtype=torch.float64) for tau in (0.2, 0.5, 0.9)]
    # A state of two channels, each a unit vector: what comes out are the columns of the transition.
    unit = torch.eye(2, dtype=torch.float64)

    def moments(start, end):
        columns, factors = [], []
        for vector in unit:
            zero = torch.zeros(1, 2, dtype=torch.float64)
            columns.append(process.reversed_langevin_step(vector[None], start, end, zero)[0])
            factors.append(process.reversed_langevin_step(zero, start, end, vector[None])[0])
        return torch.stack(columns, 1), torch.stack(factors, 1)

    first, first_factor = moments(taus[0], taus[1])
    second, second_factor = moments(taus[1], taus[2])
    whole, whole_factor = moments(taus[0], taus[2])
    torch.testing.assert_close(second @ first, whole)
    carried = second @ first_factor
    covariance = carried @ carried.mT + second_factor @ second_factor.mT
    torch.testing.assert_close(covariance, whole_factor @ whole_factor.mT)


def test_reversed_langevin_step_leaves_the_prior_as_it_is():
    process = PROCESSES["CLD, linear beta"]
    tau = torch.tensor([0.3], dtype=torch.float64)
    prior = torch.diag(torch.tensor(process.prior_standard_deviations, dtype=torch.float64))
    zero = torch.zeros(1, 2, dtype=torch.float64)
    carried = [process.reversed_langevin_step(row[None], tau, tau + 0.4, zero)[0] for row in prior]
    added = [
        process.reversed_langevin_step(zero, tau, tau + 0.4, row[None])[0] for row in torch.eye(2).double()
    ]
    columns = torch.stack([*carried, *added], 1)
    torch.testing.assert_close(columns @ columns.mT, prior @ prior)


def test_perturb_uses_one_time_for_each_sample():
    process = PROCESSES["CLD, constant beta"]
    generator = torch.Generator().manual_seed(0)
    u0, noise = torch.randn(2, 3, 4, 5, 5, generator=generator)
    t = torch.tensor([1e-4, 0.2, 0.9], dtype=torch.float64)
    together = perturb(process, u0, noise, t)
    for i in range(3):
        alone = perturb(process, u0[i : i + 1], noise[i : i + 1], t[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=0)


def test_state_of_data_and_velocity():
    process = PROCESSES["CLD, constant beta"]
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    assert state_shape(process, (3, 4, 4)) == (6, 4, 4)
    position, velocity = split(process, initial_state(process, x, torch.ones_like(x)))
    assert torch.equal(position, x)
    torch.testing.assert_close(velocity, torch.full_like(x, (0.04 / 4) ** 0.5))
    assert not split(process, initial_state(process, x))[1].any()
    assert initial_state(PROCESSES["VP"], x) is x
    assert state_shape(PROCESSES["VP"], (3, 4, 4)) == (3, 4, 4)


def test_apply_is_a_matrix_product_on_components():
    matrix = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    u = torch.tensor([[1.0, 10.0, 100.0, 1000.0]])
    assert torch.equal(apply(matrix, u), torch.tensor([[201.0, 2010.0, 403.0, 4030.0]]))


@pytest.mark.parametrize(("beta0", "beta1"), [(-1.0, 5.0), (1.0, -2.0), (0.0, 0.0), (float("nan"), 1.0)])
def test_bad_schedule_is_a_usage_error(beta0, beta1):
    with pytest.raises(UsageError, match="beta0") as caught:
        VariancePreserving(LinearBeta(beta0, beta1))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "value"),
    [("m_inv", 0.0), ("gamma", -0.1), ("numerical_eps", -1.0), ("objective", "ism"), ("gamma", float("nan"))],
)
def test_bad_cld_setting_is_a_usage_error_that_names_it(changed, value):
    settings = {"m_inv": 4.0, "gamma": 0.04, "numerical_eps": 1e-9, "objective": "hsm", changed: value}
    with pytest.raises(UsageError, match=changed):
        CriticallyDampedLangevin(LinearBeta(4.0, 0.0), **settings)
