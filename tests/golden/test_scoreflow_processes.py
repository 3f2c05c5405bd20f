"""VP, sub-VP and VE: coefficients, kernels, priors, chains, reverse equations and importance sampling of time."""

import math

import numpy as np
import pytest
import torch

from diffusion.bits import gaussian_entropy
from diffusion.continuous.kernel import kernel_mean
from diffusion.continuous.predictor_corrector import reverse_diffusion_step as reverse_diffusion
from diffusion.continuous.prior import prior_log_density
from diffusion.continuous.process import drift
from diffusion.continuous.reverse import probability_flow_drift, reverse_drift
from diffusion.tensors import expand
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
from tests.spelling import ClosedFormTimes

ARRAYS = load("scoreflow", "sdes")
NAMES = process_names(ARRAYS)


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("name", NAMES)
def test_process(name, precision):
    process = make_process(ARRAYS, name)
    recorded = comparison(ARRAYS, precision, name)
    tolerance, loose = TOLERANCES[precision], LOOSE_TOLERANCES[precision]
    x, t = channels_first(ARRAYS["in/x"]).double(), torch.from_numpy(ARRAYS["in/t"]).double()
    z = channels_first(ARRAYS["in/z"]).double()
    score = toy_score(ARRAYS, process, precision)

    def close(key, value, allowed=tolerance):
        recorded.close(key, channels_last(value) if value.dim() == 4 else value, allowed)

    close("drift", drift(process, x, t))
    close("diffusion", process.diffusion_coefficient(t))
    close("mean", kernel_mean(process, x, t))
    close("std", process.kernel_factor(t)[:, 0, 0])
    close("prior_logp", prior_log_density(process, z)["x"])
    entropy = gaussian_entropy(process.prior_standard_deviations[0] ** 2, z[0].numel())
    # Recorded in float32 in either precision.
    close("prior_entropy", torch.full((len(z),), entropy), TOLERANCES["f32"])
    close("score", score(x, t))

    # In float32 the index of a time can fall on the other side of a grid point.
    n_steps = int(ARRAYS["in/N_discretize"])
    step = process.discrete_step(t, n_steps)
    close("discretize_f", expand(step.growth, x) * x)
    close("discretize_G", step.noise, loose)
    _, mean = reverse_diffusion(process, score, x, t, torch.zeros_like(x), n_steps)
    close("rsde_discretize_f", x - mean, loose)
    close("rsde_discretize_G", step.noise, loose)
    close("rsde_drift", -reverse_drift(process, score(x, t), x, 1 - t), loose)
    close("rsde_diffusion", process.diffusion_coefficient(t))
    close("rode_drift", -probability_flow_drift(process, score(x, t), x, 1 - t), loose)
    plain = {"mean_plain", "std_plain", "diffusion_plain", "cum_weight", "Z", "t_importance"}
    recorded.nothing_left(*plain)


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("ve")])
def test_without_the_jump_at_small_times(name):
    """Our default is the plain formula, evaluated without cancellation."""
    process = make_process(ARRAYS, name, linearised_start=False)
    recorded = comparison(ARRAYS, "f64", name)
    x, t = channels_first(ARRAYS["in/x"]).double(), torch.from_numpy(ARRAYS["in/t"]).double()
    recorded.close("mean_plain", channels_last(kernel_mean(process, x, t)), 1e-9)
    recorded.close("std_plain", process.kernel_factor(t)[:, 0, 0], 1e-9)
    if "f64/" + name + "/diffusion_plain" in ARRAYS:
        recorded.close("diffusion_plain", process.diffusion_coefficient(t), 1e-9)
    # Entry by entry the plain formulas have lost digits that ours has not.
    recorded.relative("std_plain", process.kernel_factor(t)[:, 0, 0], 1e-7)


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("ve")])
def test_importance_sampling_of_time(name, precision):
    process = make_process(ARRAYS, name)
    recorded = comparison(ARRAYS, precision, name)
    t = torch.from_numpy(ARRAYS["in/t"]).double()
    smallest = [float(eps) for eps in ARRAYS["in/eps"]]
    densities = [ClosedFormTimes(process, eps, published_behaviour=True) for eps in smallest]
    weight = torch.stack([process.cumulative_weight(t) - density.start for density in densities])
    recorded.close("cum_weight", weight, TOLERANCES[precision])
    recorded.close("Z", [density.total for density in densities], TOLERANCES[precision])
    quantiles = torch.from_numpy(ARRAYS[f"{name}/quantile"]).double()
    times = torch.stack([d.times(row / d.total) for d, row in zip(densities, quantiles, strict=True)])
    recorded.close("t_importance", times, TOLERANCES[precision])
    # Small times count as much as large ones.
    recorded.relative("t_importance", times, LOOSE_TOLERANCES[precision] if precision == "f32" else 1e-7)


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("ve")])
def test_the_closed_form_departs_from_the_published_times_by_the_jump_only(name):
    """At a given quantile the public branch moves G by at most 1e-3, so log t by about as much."""
    exact, published = (make_process(ARRAYS, name, linearised_start=branch) for branch in (False, True))
    for eps, quantiles in zip(ARRAYS["in/eps"], ARRAYS[f"{name}/quantile"], strict=True):
        ours = ClosedFormTimes(exact, float(eps))
        theirs = ClosedFormTimes(published, float(eps), published_behaviour=True)
        fractions = torch.from_numpy(quantiles).double() / theirs.total
        deviation = (ours.times(fractions).log() - theirs.times(fractions).log()).abs().max().item()
        assert deviation < 5e-3
        assert math.isclose(ours.total, theirs.total, rel_tol=1e-3)
        assert np.all(np.diff(ours.times(torch.linspace(0, 1, 50)).numpy()) > 0)
