"""Likelihoods and bits/dim against the recorded ones."""

import numpy as np
import pytest
import torch

from diffusion.bits import PixelScale, gaussian_entropy, in_bits_per_dimension
from diffusion.continuous.likelihood import negative_log_likelihood_terms
from diffusion.continuous.process import initial_state
from diffusion.continuous.score import make_score
from tests.golden.cld_setup import Comparison, PointwiseNetwork, make_process, runs
from tests.golden.vectors import load
from tests.spelling import ode_log_likelihood

TOLERANCE = 1e-5
# What "tight" in the name of a variant stands for.
TIGHT = 1e-9
FILES = ("likelihood_cld", "likelihood_vpsde", "likelihood_toy_cld")
# Images of 256 grey levels on [-1, 1], as all the image files have them.
SCALE = PixelScale()


@pytest.mark.parametrize(("file", "variant", "published_behaviour"), list(runs(*FILES)))
def test_likelihood(file, variant, published_behaviour):
    arrays = load("cld", file)
    process = make_process(arrays)
    comparison = Comparison(arrays, f"{variant}/")
    # The score is mixed for images, plain for points.
    score = make_score(process, PointwiseNetwork(arrays, "net"), mixed="pixels_uint8" in arrays)

    if "pixels_uint8" in arrays:
        x = SCALE.dequantize(*(torch.from_numpy(arrays[key]) for key in ("pixels_uint8", "dequant_uniform")))
    else:
        x = torch.from_numpy(arrays["x"])
    velocity_noise = torch.from_numpy(arrays["velocity_noise"]) if "velocity_noise" in arrays else None
    u0 = initial_state(process, x, velocity_noise)
    comparison.close("u0", u0, 1e-6)

    tight = variant.endswith("tight")
    result = ode_log_likelihood(
        process,
        score,
        torch.from_numpy(arrays[f"{variant}/u0"]),
        torch.from_numpy(arrays[f"{variant}/probe"]),
        start=float(arrays["hp/likelihood_eps"]),
        solver="RK45",
        rtol=TIGHT if tight else float(arrays["hp/rtol"]),
        atol=TIGHT if tight else float(arrays["hp/atol"]),
        published_behaviour=published_behaviour,
    )
    if tight:
        # At this tolerance the step control reacts to the last bits of the float32 network.
        comparison.relative("nfe", result.n_evaluations, 0.05)
    else:
        comparison.equal("nfe", result.n_evaluations)
    comparison.close("u_T", result.final_state, TOLERANCE)
    comparison.close("delta_logp", result.divergence, TOLERANCE)
    for name, density in result.prior.items():
        suffix = f"_{name}" if len(result.prior) > 1 else ""
        comparison.close(f"prior_logp{suffix}", density, TOLERANCE)
    joint = "nll_joint" if len(result.prior) > 1 else "nll"
    comparison.close(joint, -result.log_density, TOLERANCE)

    terms = negative_log_likelihood_terms(process, result)
    n_dimensions = x[0].numel()
    comparison.equal("D", n_dimensions)
    value = sum(terms.values())
    if "velocity_entropy" in terms:
        comparison.close("nll_bound", value, TOLERANCE)
        assert process.velocity_variance is not None
        comparison.relative(
            "velocity_entropy", gaussian_entropy(process.velocity_variance, n_dimensions), 1e-12
        )
    if "pixels_uint8" in arrays:
        comparison.equal("bpd_offset", SCALE.offset)
        value = sum(in_bits_per_dimension(terms, n_dimensions, SCALE).values())
        comparison.close("bpd", value, TOLERANCE)
    else:
        comparison.close("nll_per_sample", value, TOLERANCE)
    assert value.dtype == torch.float64
    comparison.close("mean", value.mean(), TOLERANCE)
    t_span = arrays[f"{variant}/t_span"]
    np.testing.assert_allclose(t_span, [float(arrays["hp/likelihood_eps"]), 1.0], rtol=1e-6)
    comparison.nothing_left("probe", "t_span")
