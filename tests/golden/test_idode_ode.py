"""Drift, dequantizations, likelihoods and samples against the recorded ones."""

import math

import pytest
import torch

from diffusion.bits import PixelScale, in_bits_per_dimension
from diffusion.importance_weighted import importance_weighted_terms
from diffusion.level_dequantization import (
    dequantize_uniformly,
    dequantize_variationally,
    dequantize_within_levels,
    truncation,
)
from diffusion.log_snr import log_alpha_slope
from diffusion.log_snr_ode import decode, ode_drift, ode_likelihood_terms, ode_sample
from diffusion.process import expand
from tests.golden.idode_setup import (
    DTYPES,
    TOLERANCE,
    ToyNetwork,
    assert_near,
    groups,
    images,
    make_schedule,
    parameterisation,
)
from tests.golden.vectors import load

SCALE = PixelScale()
# After an adaptive solve.
SOLVED = {"f32": 1e-4, "f64": 1e-6}
NFE_TOLERANCE = 2


@pytest.mark.parametrize("velocity", [True, False])
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("group", groups("ode"))
def test_drift(group, velocity, precision):
    arrays = load("idode", "ode")
    schedule = make_schedule(arrays, group)
    x = images(arrays["in/x_drift"]).double().requires_grad_()
    gamma = torch.from_numpy(arrays["in/gamma_drift"]).double()
    probe = images(arrays["in/probe"]).double()
    drift = ode_drift(schedule, parameterisation(velocity), ToyNetwork(arrays, velocity, DTYPES[precision]))(x, gamma)
    (product,) = torch.autograd.grad(drift, x, probe)
    noise = (drift - expand(log_alpha_slope(schedule, gamma), x) * x) * 2 / expand(schedule.sigma(gamma), x)
    prefix = f"{precision}/{group}/vel{velocity:d}/"
    assert_near(drift, arrays[f"{prefix}drift"], TOLERANCE[precision], "drift")
    assert_near(noise, arrays[f"{prefix}noise_fn"], TOLERANCE[precision], "noise_fn")
    assert_near((product * probe).flatten(1).sum(1), arrays[f"{prefix}drift_div"], TOLERANCE[precision], "drift_div")


def dequantized(arrays, group, kind, row, mean_entropy):
    schedule, levels = make_schedule(arrays, group), images(arrays["in/images"])
    if kind == "u":
        noise = images(arrays["in/uniform_noise"])[row]
        return dequantize_uniformly(schedule, levels, noise, SCALE, published_behaviour=True)
    if kind == "v":
        noise = images(arrays["in/normal_noise"])[row]
        return dequantize_variationally(
            schedule, levels, noise, SCALE, mean_entropy=mean_entropy, published_behaviour=True
        )
    noise = images(arrays[f"{group}/tn_noise"])[row]
    return dequantize_within_levels(schedule, levels, noise, SCALE, mean_entropy=mean_entropy)


@pytest.mark.parametrize("kind", ["u", "v", "tn"])
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("group", groups("ode"))
def test_likelihood(group, precision, kind):
    arrays = load("idode", "ode")
    schedule = make_schedule(arrays, group)
    drift = ode_drift(schedule, parameterisation(True), ToyNetwork(arrays, True, DTYPES[precision]))
    probe = images(arrays["in/probe"])
    n_dimensions = probe[0].numel()
    names = [f"{precision}/{group}/{kind}_{k}/" for k in ("K1", "K3")]
    n_rows = len(arrays[names[0] + "logp_k"])
    solved = SOLVED[precision]

    draws = []
    for row in range(n_rows):
        start = dequantized(arrays, group, kind, row, mean_entropy=True)
        terms, n_evaluations = ode_likelihood_terms(
            schedule, drift, start, probe, solver="RK45",
            rtol=float(arrays["in/rtol"]), atol=float(arrays["in/atol"]),
        )  # fmt: skip
        draws.append(terms)
        for name in names:
            if row < len(arrays[name + "logp_k"]):
                assert abs(n_evaluations - arrays[name + "nfe"][row]) <= NFE_TOLERANCE
                assert_near(-terms["prior"], arrays[name + "prior_logp"][row], solved, "prior_logp")
                assert_near(-terms["divergence"], arrays[name + "delta_logp"][row], solved, "delta_logp")
                if kind == "v":
                    assert_near(-terms["reconstruction"], arrays[name + "logp_recon"][row], solved, "logp_recon")
        if row < len(arrays[names[0] + "x_init"]):
            assert_near(start.z, arrays[names[0] + "x_init"][row], TOLERANCE[precision], "x_init")
        if kind != "u":
            assert_near(terms["entropy"].mean(), arrays[names[0] + "logq"][row], TOLERANCE[precision], "logq")
    for name, k in zip(names, (1, len(arrays[names[1] + "logp_k"])), strict=True):
        if k > 1 and kind != "u":
            for row in range(k):
                draws[row]["entropy"] = dequantized(arrays, group, kind, row, mean_entropy=False).terms["entropy"]
                assert_near(draws[row]["entropy"], arrays[name + "logq"][row], TOLERANCE[precision], "logq")
        rows = [
            importance_weighted_terms(draws[first : first + k], published_behaviour=True)
            for first in (range(n_rows) if k == 1 else [0])
        ]
        for row, terms in enumerate(draws[: len(arrays[name + "logp_k"])]):
            assert_near(-sum(terms.values()), arrays[name + "logp_k"][row], solved, "logp_k")
        value = torch.stack([sum(terms.values()) for terms in rows]).mean(0)
        assert_near(-value, arrays[name + "logp"], solved, "logp")
        bits = [in_bits_per_dimension(terms, n_dimensions, SCALE if kind == "u" else None) for terms in rows]
        bits_per_dimension = torch.stack([sum(terms.values()) for terms in bits]).mean(0)
        assert_near(bits_per_dimension, arrays[name + "bpd"], solved, "bpd")
        if k > 1:
            ours = sum(importance_weighted_terms(draws[:k]).values())
            torch.testing.assert_close(ours, value + math.log(k))
    if kind == "tn":
        tau = truncation(schedule, SCALE)
        assert_near(tau, arrays[names[0] + "tau"], TOLERANCE[precision], "tau")
        assert_near(tau, arrays[f"{group}/tn_tau_f64"], TOLERANCE["f64"], "tau")
        assert_near(math.erf(tau / math.sqrt(2)), arrays[names[0] + "Z_tn"], TOLERANCE[precision], "Z_tn")


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("group", groups("ode"))
def test_samples(group, precision):
    arrays = load("idode", "ode")
    schedule = make_schedule(arrays, group)
    drift = ode_drift(schedule, parameterisation(True), ToyNetwork(arrays, True, DTYPES[precision]))
    z, n_evaluations = ode_sample(
        schedule, drift, images(arrays["in/sample_z"]), solver="RK45",
        rtol=float(arrays["in/rtol"]), atol=float(arrays["in/atol"]),
    )  # fmt: skip
    prefix = f"{precision}/{group}/sample/"
    assert abs(n_evaluations - arrays[prefix + "nfe"]) <= NFE_TOLERANCE
    assert_near(z, arrays[prefix + "z_0"], SOLVED[precision], "z_0")
    image = decode(schedule, z, SCALE, published_behaviour=True)
    if precision == "f64":
        assert_near(image, arrays[prefix + "image"], 0, "image")
