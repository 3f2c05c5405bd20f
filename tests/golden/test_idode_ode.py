"""Drift, dequantizations, likelihoods and samples against the recorded ones."""

import math
import re

import pytest
import torch

from diffusion.bits import PixelScale, in_bits_per_dimension
from diffusion.log_snr.dequantization import dequantize_within_levels, truncation
from diffusion.log_snr.likelihood import ode_drift
from diffusion.log_snr.schedule import log_alpha_slope
from diffusion.tensors import expand
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
from tests.spelling import (
    decode,
    dequantize_uniformly,
    dequantize_variationally,
    importance_weighted_terms,
    ode_likelihood_terms,
    ode_sample,
)

SCALE = PixelScale()
# After an adaptive solve.
SOLVED = {"f32": 1e-4, "f64": 1e-6}
DECODER_TOLERANCE = {"f32": 5e-4, "f64": 1e-9}
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


def recorded_counts(arrays, beginning):
    """Numbers of importance samples that a file has, with the beginning of their keys."""
    found = {re.match(rf"{beginning}(\d+)/", key) for key in arrays if key.startswith(beginning)}
    return {int(match[1]): match[0] for match in sorted(filter(None, found), key=lambda match: int(match[1]))}


@pytest.mark.parametrize("kind", ["u", "v", "tn"])
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("group", groups("ode"))
def test_likelihood(group, precision, kind):
    arrays = load("idode", "ode")
    schedule = make_schedule(arrays, group)
    drift = ode_drift(schedule, parameterisation(True), ToyNetwork(arrays, True, DTYPES[precision]))
    probe = images(arrays["in/probe"])
    n_dimensions = probe[0].numel()
    counts = recorded_counts(arrays, f"{precision}/{group}/{kind}_K")
    assert 1 in counts
    assert max(counts) > 1
    solved = SOLVED[precision]

    draws = []
    for row in range(max(len(arrays[f"{prefix}logp_k"]) for prefix in counts.values())):
        start = dequantized(arrays, group, kind, row, mean_entropy=True)
        terms, n_evaluations = ode_likelihood_terms(
            schedule, drift, start, probe, solver="RK45",
            rtol=float(arrays["in/rtol"]), atol=float(arrays["in/atol"]),
        )  # fmt: skip
        draws.append(terms)
        for prefix in counts.values():
            if row < len(arrays[f"{prefix}logp_k"]):
                assert abs(n_evaluations - arrays[f"{prefix}nfe"][row]) <= NFE_TOLERANCE
                assert_near(-terms["prior"], arrays[f"{prefix}prior_logp"][row], solved, "prior_logp")
                assert_near(-terms["divergence"], arrays[f"{prefix}delta_logp"][row], solved, "delta_logp")
                if kind == "v":
                    expected, tolerance = arrays[f"{prefix}logp_recon"][row], DECODER_TOLERANCE[precision]
                    assert_near(-terms["reconstruction"], expected, tolerance, "logp_recon")
            if row < len(arrays.get(f"{prefix}x_init", ())):
                assert_near(start.z, arrays[f"{prefix}x_init"][row], TOLERANCE[precision], "x_init")
    for k, prefix in counts.items():
        rows = draws[: len(arrays[f"{prefix}logp_k"])]
        if kind != "u":
            entropies = [
                dequantized(arrays, group, kind, i, mean_entropy=k == 1).terms["entropy"] for i in range(len(rows))
            ]
            rows = [{**terms, "entropy": entropy} for terms, entropy in zip(rows, entropies, strict=True)]
            logq = torch.stack(entropies)
            assert_near(logq.mean(1) if k == 1 else logq, arrays[f"{prefix}logq"], TOLERANCE[precision], "logq")
        logp_k = -torch.stack([sum(terms.values()) for terms in rows])
        assert_near(logp_k, arrays[f"{prefix}logp_k"], solved, "logp_k")
        # One importance sample is recorded as the mean over repetitions of it.
        groups_of_draws = [[terms] for terms in rows] if k == 1 else [rows]
        results = [importance_weighted_terms(group, published_behaviour=True) for group in groups_of_draws]
        value = torch.stack([sum(terms.values()) for terms in results]).mean(0)
        assert_near(-value, arrays[f"{prefix}logp"], solved, "logp")
        bits = [in_bits_per_dimension(terms, n_dimensions, SCALE if kind == "u" else None) for terms in results]
        bits_per_dimension = torch.stack([sum(terms.values()) for terms in bits]).mean(0)
        assert_near(bits_per_dimension, arrays[f"{prefix}bpd"], solved, "bpd")
        if k > 1:
            ours = sum(importance_weighted_terms(rows).values())
            torch.testing.assert_close(ours, value + math.log(k))
    if kind == "tn":
        tau = truncation(schedule, SCALE)
        for prefix in counts.values():
            assert_near(tau, arrays[f"{prefix}tau"], TOLERANCE[precision], "tau")
            assert_near(math.erf(tau / math.sqrt(2)), arrays[f"{prefix}Z_tn"], TOLERANCE[precision], "Z_tn")
        assert_near(tau, arrays[f"{group}/tn_tau_f64"], TOLERANCE["f64"], "tau")


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
