"""Likelihoods through the probability-flow equation."""

import numpy as np
import pytest
import torch

from diffusion.bits import PixelScale, in_bits_per_dimension
from diffusion.continuous.likelihood import negative_log_likelihood_terms
from diffusion.continuous.reverse import probability_flow_drift
from tests.golden.scoreflow_setup import (
    LOOSE_TOLERANCES,
    TOLERANCES,
    channels_first,
    channels_last,
    comparison,
    make_process,
    process_names,
    toy_score,
)
from tests.golden.vectors import load
from tests.spelling import ode_log_likelihood

ARRAYS = load("scoreflow", "likelihood_ode")
NAMES = process_names(ARRAYS)
PROBES = {"hutch": "in/probe", "gauss": "in/gauss_probe", "exact": None}


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("name", NAMES)
def test_drift_and_its_divergence(name, precision):
    process = make_process(ARRAYS, name)
    recorded = comparison(ARRAYS, precision, name)
    score = toy_score(ARRAYS, process, precision)
    x, probe = (channels_first(ARRAYS[key]).double() for key in ("in/data", "in/probe"))
    t = torch.from_numpy(ARRAYS["in/t_drift"]).double()
    x.requires_grad_()
    drift = -probability_flow_drift(process, score(x, t), x, 1 - t)
    (product,) = torch.autograd.grad(drift, x, probe)
    recorded.close("drift_at_t", channels_last(drift), LOOSE_TOLERANCES[precision])
    recorded.close("div_at_t", (product * probe).flatten(1).sum(1), LOOSE_TOLERANCES[precision])


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize(("name", "group"), [(name, group) for name in NAMES for group in PROBES])
def test_log_likelihood(name, group, precision):
    process = make_process(ARRAYS, name)
    recorded = comparison(ARRAYS, precision, f"{name}/{group}")
    x = channels_first(ARRAYS["in/data"]).double()
    probe_key, times = PROBES[group], []
    result = ode_log_likelihood(
        process,
        toy_score(ARRAYS, process, precision),
        x,
        None if probe_key is None else channels_first(ARRAYS[probe_key]),
        start=float(ARRAYS[f"{name}/eps"]),
        solver="RK45",
        rtol=float(ARRAYS["in/rtol"]),
        atol=float(ARRAYS["in/atol"]),
        on_evaluation=lambda _count, t: times.append(t),
    )
    terms = in_bits_per_dimension(negative_log_likelihood_terms(process, result), x[0].numel(), PixelScale())
    tolerance = TOLERANCES["f32"] if precision == "f32" else 1e-6
    recorded.close("bpd", sum(terms.values()), tolerance)
    assert np.abs(sum(terms.values()).numpy() - ARRAYS[f"{recorded.prefix}bpd"]).max() < 1e-4
    recorded.close("prior_logp", result.prior["x"], tolerance)
    recorded.close("delta_logp", result.divergence, LOOSE_TOLERANCES["f32"] if precision == "f32" else 1e-6)
    if "z" in {key.removeprefix(recorded.prefix) for key in recorded.remaining}:
        recorded.close("z", channels_last(result.final_state), tolerance)
    if precision == "f32":
        recorded.nothing_left("nfe", "ode_t")  # step sizes follow the rounding
        return
    recorded.equal("nfe", result.n_evaluations)
    accepted = ARRAYS.get(f"{recorded.prefix}ode_t", np.array([]))
    assert all(np.abs(np.array(times) - time).min() < 1e-6 for time in accepted)
    recorded.nothing_left("ode_t")
