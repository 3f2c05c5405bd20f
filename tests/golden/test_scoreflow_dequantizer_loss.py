"""The loss of the dequantizer's training, term by term."""

import math

import pytest
import torch

from diffusion.bits import PixelScale, in_bits_per_dimension
from diffusion.continuous.bound import denoising_norms, drift_divergence
from diffusion.continuous.losses import training_times
from models.flowpp.bijections import per_sample, sigmoid
from tests.golden.scoreflow_setup import (
    LOOSE_TOLERANCES,
    PRECISIONS,
    channels_first,
    channels_last,
    comparison,
    make_process,
    process_names,
    toy_score,
    uniform_of_quantile,
    uniform_of_time,
)
from tests.golden.vectors import load
from tests.spelling import ClosedFormTimes, dequantization_bound

ARRAYS = load("scoreflow", "deq_loss")
GROUPS = sorted({tuple(key.split("/")[1:3]) for key in ARRAYS if key.startswith("f64/")})


class RecordedDraws:
    """The draws of the file, in the order in which the loss asks for them."""

    def __init__(self, uniforms, offset):
        self.uniforms = iter(uniforms)
        names = ["z_dsm", "z_prior", "z_offset"]
        self.normals = iter([channels_first(ARRAYS[f"in/{name}"]) for name in names[: 3 if offset else 2]])

    def uniform(self, *_shape, dtype):
        return next(self.uniforms).to(dtype)

    def normal(self, *_shape):
        return next(self.normals)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("name", "group"), GROUPS)
def test_loss(name, group, precision):
    assert name in process_names(ARRAYS)
    weighted, offset = group.startswith("iw1"), group.endswith("offset1")
    process = make_process(ARRAYS, name)
    score = toy_score(ARRAYS, process, precision)
    recorded = comparison(ARRAYS, precision, f"{name}/{group}")
    tolerance = LOOSE_TOLERANCES[precision]
    eps = float(ARRAYS[f"{name}/eps"])

    # Recorded from images in float32, whose grey levels are whole numbers but for its rounding.
    unit = (channels_first(ARRAYS["in/data_centered"]).to(PRECISIONS[precision]) + 1) / 2
    u = channels_first(ARRAYS["in/u"]).to(PRECISIONS[precision])
    slope, shift = (float(value) for value in ARRAYS["in/deq_km"])
    noise, log_determinant = sigmoid(slope * u + shift * (unit - 0.5))
    log_normal = -per_sample(u.double().square() / 2 + math.log(2 * math.pi) / 2)
    minus_log_q = log_determinant + u[0].numel() * math.log(slope) - log_normal
    scale = PixelScale()
    x = 2 * (255 * unit + noise) / 256 - 1
    pixels = channels_first(ARRAYS["in/image_uint8"])
    torch.testing.assert_close(scale.dequantize(pixels, noise), x, rtol=0, atol=1e-6)
    recorded.close("deq_noise", channels_last(noise), tolerance)
    recorded.close("sldj", minus_log_q, tolerance)
    recorded.close("dequantized_data", channels_last(x), tolerance)

    density = ClosedFormTimes(process, eps, published_behaviour=True) if weighted else None
    uniform = uniform_of_time(ARRAYS, name)
    if density is not None:
        uniform = uniform_of_quantile(ARRAYS[f"{name}/quantile"], density)
    t = training_times(uniform, eps) if density is None else density.times(uniform)
    recorded.close("t", t, tolerance)
    drift_uniform = (torch.from_numpy(ARRAYS[f"{name}/t_div"]).double() - eps) / (1 - eps)
    divergence = drift_divergence(process, x, training_times(drift_uniform, eps))
    recorded.close("drift_div", divergence, tolerance)

    _, kernel_norm = denoising_norms(process, score, x, t, channels_first(ARRAYS["in/z_dsm"]))
    factor = process.kernel_factor(t)[:, 0, 0] if weighted else process.diffusion_coefficient(t)
    recorded.close("grad_norm", factor**2 * kernel_norm, tolerance)

    draws = RecordedDraws([uniform, drift_uniform], offset)
    terms = dequantization_bound(
        process,
        score,
        x,
        minus_log_q,
        draws,
        smallest_time=eps,
        importance=density,
        offset=offset,
        published_behaviour=True,
    )
    assert next(draws.normals, None) is None
    assert next(draws.uniforms, None) is None
    recorded.close("neg_prior_logp", terms["prior"], tolerance)
    recorded.close("dsm_term", 2 * terms["score_matching"], tolerance)
    if offset:
        recorded.close("offset", terms["reconstruction"] + terms["small_time_entropy"], tolerance)
    losses = sum(terms.values())
    recorded.close("losses", losses, tolerance)
    recorded.close("loss_mean", losses.mean(), tolerance)
    bits = sum(in_bits_per_dimension(terms, x[0].numel(), scale).values())
    recorded.close("bpd", bits, tolerance)
    recorded.close("bpd_mean", bits.mean(), tolerance)
    recorded.nothing_left()
