"""Processes, kernels and priors against the recorded ones."""

import numpy as np
import pytest
import torch

from diffusion.continuous.kernel import kernel_mean, loss_multiplier, noise_multiplier
from diffusion.continuous.prior import prior_log_density
from diffusion.continuous.process import diffusion, drift, driven, split
from diffusion.continuous.reverse import probability_flow_drift, reverse_diffusion, reverse_drift
from diffusion.tensors import expand
from tests.golden.cld_setup import Comparison, make_process
from tests.golden.vectors import load

FLOAT64 = 1e-12
RELATIVE = 1e-6


@pytest.mark.parametrize("name", ["kernel_cld", "kernel_vpsde"])
def test_coefficients(name):
    arrays = load("cld", name)
    process = make_process(arrays)
    comparison = Comparison(arrays, "")
    t, tau, u, score = (torch.from_numpy(arrays[key]) for key in ("t", "tau", "u", "score"))
    schedule = process.schedule

    comparison.relative("beta", schedule.beta(t), FLOAT64)
    comparison.relative("beta_int", schedule.integral(t), FLOAT64)
    comparison.relative("loss_multiplier", loss_multiplier(process, t), FLOAT64)
    comparison.close("sde/drift", drift(process, u, t), FLOAT64)
    comparison.close("sde/diffusion", diffusion(process, u, t), FLOAT64)
    comparison.close("reverse/drift", reverse_drift(process, score, u, tau), RELATIVE)
    comparison.close("reverse/diffusion", reverse_diffusion(process, u, tau), RELATIVE)
    comparison.close("probflow/drift", probability_flow_drift(process, score, u, tau), RELATIVE)


@pytest.mark.parametrize("name", ["kernel_cld", "kernel_vpsde"])
def test_prior_log_density(name):
    arrays = load("cld", name)
    comparison = Comparison(arrays, "prior/")
    densities = prior_log_density(make_process(arrays), torch.from_numpy(arrays["u"]))
    for component, density in densities.items():
        suffix = f"_{component}" if len(densities) > 1 else ""
        comparison.relative(f"logp{suffix}", density, FLOAT64)
        comparison.relative(f"logp{suffix}_f32", density, 1e-5)
    comparison.nothing_left()


def test_cld_kernel_mean():
    arrays = load("cld", "kernel_cld")
    process = make_process(arrays)
    u0 = torch.from_numpy(np.concatenate([arrays["x0"], arrays["v0"]], axis=1))
    mean_x, mean_v = split(process, kernel_mean(process, u0, torch.from_numpy(arrays["t"])))
    comparison = Comparison(arrays, "")
    comparison.close("mean_x", mean_x, FLOAT64)
    comparison.close("mean_v", mean_v, FLOAT64)


def test_cld_critical_damping():
    arrays = load("cld", "kernel_cld")
    friction = make_process(arrays).friction
    comparison = Comparison(arrays, "hp/")
    comparison.relative("f", friction, FLOAT64)
    comparison.relative("g", 1 / friction, FLOAT64)


@pytest.mark.parametrize("objective", ["hsm", "dsm"])
def test_cld_kernel_covariance(objective):
    arrays = load("cld", "kernel_cld")
    process = make_process(arrays, objective)
    t = torch.from_numpy(arrays["t"])
    factor = process.kernel_factor(t)
    covariance = factor @ factor.mT
    results = {
        "var_xx": covariance[:, 0, 0],
        "var_xv": covariance[:, 0, 1],
        "var_vv": covariance[:, 1, 1],
        "noise_multiplier": noise_multiplier(process, t),
    }
    exact = Comparison(arrays, f"{objective}/exact/")
    recorded = Comparison(arrays, f"{objective}/")
    for name, result in results.items():
        exact.relative(name, result, FLOAT64)
        # The recorded numbers may be off by the round-off that they show themselves.
        round_off = np.abs(arrays[f"{objective}/{name}"] - arrays[f"{objective}/exact/{name}"])
        recorded.relative(name, result, RELATIVE, atol=round_off)
    exact.nothing_left()


def test_cld_covariance_of_general_initial_variances():
    arrays = load("cld", "kernel_cld")
    t, var0x, var0v = (torch.from_numpy(arrays[key]) for key in ("t", "general/var0x", "general/var0v"))
    factor = make_process(arrays).covariance_factor(t, (var0x, var0v))
    covariance = factor @ factor.mT + float(arrays["hp/numerical_eps"]) * torch.eye(2)
    comparison = Comparison(arrays, "general/")
    # Recorded variances have an absolute round-off of a few units in the last place of 1.
    comparison.relative("var_xx", covariance[:, 0, 0], RELATIVE, atol=1e-15)
    comparison.relative("var_xv", covariance[:, 0, 1], RELATIVE, atol=1e-15)
    comparison.relative("var_vv", covariance[:, 1, 1], RELATIVE, atol=1e-15)
    comparison.nothing_left("var0x", "var0v")


def test_vp_kernel():
    arrays = load("cld", "kernel_vpsde")
    process = make_process(arrays)
    t, x0, var0x = (torch.from_numpy(arrays[key]) for key in ("t", "x0", "general/var0x"))
    comparison = Comparison(arrays, "")
    comparison.close("mean", kernel_mean(process, x0, t), FLOAT64)
    comparison.relative("var", process.kernel_factor(t).flatten() ** 2, RELATIVE)
    comparison.relative("general/var", process.covariance_factor(t, (var0x,)).flatten() ** 2, RELATIVE)
    comparison.relative("noise_multiplier", noise_multiplier(process, t), RELATIVE)


@pytest.mark.parametrize("name", ["kernel_cld", "kernel_vpsde"])
def test_probability_flow_has_half_the_score_and_no_noise(name):
    arrays = load("cld", name)
    process = make_process(arrays)
    u, score, t = (torch.from_numpy(arrays[key]) for key in ("u", "score", "t"))
    assert not arrays["probflow/diffusion"].any()
    difference = probability_flow_drift(process, score, u, 1 - t) - reverse_drift(process, score, u, 1 - t)
    strength = -0.5 * process.diffusion_coefficient(t) ** 2
    torch.testing.assert_close(difference, driven(process, expand(strength, score) * score))
