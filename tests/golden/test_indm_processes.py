"""Schedules, importance-sampled times, soft truncation and the prior against the recorded ones."""

import pytest
import torch

from diffusion.continuous.latent_loss import signal_and_noise_scales
from diffusion.continuous.prior import prior_log_density
from diffusion.continuous.soft_truncation import soft_truncated_time
from tests.golden.indm_setup import FLOAT64, close, load, make_process
from tests.spelling import ClosedFormTimes, weighted_times

SMALLEST = 1e-5


@pytest.mark.parametrize("name", ["ve", "vp"])
def test_schedules(name):
    arrays = load("indm", "sde")
    process = make_process(name, arrays[f"{name}/params"])
    t = torch.from_numpy(arrays["t_grid"])
    alpha, sigma = signal_and_noise_scales(process, t)
    found = {
        "marginal_mean_coeff": alpha,
        "marginal_std": sigma,
        "drift_coeff": process.drift_matrix(t)[..., 0, 0],
        "diffusion": process.diffusion_coefficient(t),
    }
    for key, value in found.items():
        recorded = torch.from_numpy(arrays[f"{name}/{key}_f64"])
        torch.testing.assert_close(value, recorded, rtol=FLOAT64, atol=1e-15)
    # An antiderivative is defined up to a constant.
    weight, recorded = process.cumulative_weight(t), torch.from_numpy(arrays[f"{name}/antiderivative_f64"])
    torch.testing.assert_close(weight - weight[-1], recorded - recorded[-1], rtol=FLOAT64, atol=FLOAT64)


@pytest.mark.parametrize("name", ["ve", "vp"])
def test_times(name):
    arrays = load("indm", "sde")
    process = make_process(name, arrays[f"{name}/params"])
    uniform = torch.from_numpy(arrays["u"])
    for row, smallest in enumerate(arrays["t_min"]):
        density = ClosedFormTimes(process, float(smallest))
        close(density.total, arrays[f"{name}/Z_is_f64"][row], FLOAT64)
        t = density.times(uniform)
        assert t.dtype == torch.float64
        torch.testing.assert_close(t, torch.from_numpy(arrays[f"{name}/t_is_f64"][row]), rtol=FLOAT64, atol=0)
        t = weighted_times(process, uniform, float(smallest), weighting="reweightedv2", importance_sampling=False).t
        torch.testing.assert_close(t, torch.from_numpy(arrays[f"{name}/t_uniform_f64"][row]), rtol=FLOAT64, atol=0)


@pytest.mark.parametrize("name", ["ve", "vp"])
def test_soft_truncation(name):
    arrays = load("indm", "sde")
    uniform = torch.from_numpy(arrays["st/u"])
    for row, exponent in enumerate(arrays["k"]):
        smallest = soft_truncated_time(uniform, SMALLEST, float(exponent))
        recorded = torch.from_numpy(arrays[f"{name}/st/t_min_f64"][row])
        torch.testing.assert_close(smallest, recorded, rtol=FLOAT64, atol=0)


@pytest.mark.parametrize("name", ["ve", "vp"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, FLOAT64), (torch.float32, 1e-4)])
def test_prior(name, dtype, tolerance):
    arrays = load("indm", "sde")
    process = make_process(name, arrays[f"{name}/params"])
    x = torch.from_numpy(arrays["prior_logp/x"]).to(dtype)
    close(prior_log_density(process, x)["x"], arrays[f"{name}/prior_logp_f64"], tolerance)
