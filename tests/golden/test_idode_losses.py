"""Every term of the bound, the second-order objective and the decoder against the recorded ones."""

import math

import numpy as np
import pytest
import torch

from diffusion.bits import PixelScale, in_bits_per_dimension
from diffusion.log_snr.bound import loss_weight, prior_term
from diffusion.log_snr.levels import level_log_probabilities
from diffusion.log_snr.schedule import end_point
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
from tests.spelling import decode, diffusion_terms, reconstruction_term

DECODER_TOLERANCE = {"f32": 5e-4, "f64": 1e-9}
SCALE = PixelScale()


@pytest.mark.parametrize("group", groups("losses"))
@pytest.mark.parametrize("precision", DTYPES)
def test_terms(group, precision):
    arrays = load("idode", "losses")
    schedule = make_schedule(arrays, group)
    dtype, tolerance = DTYPES[precision], TOLERANCE[precision]
    levels, eps_0, eps, probe = (images(arrays[f"in/{name}"]) for name in ("images", "eps_0", "eps", "probe"))
    x, noise, t = SCALE.centers(levels), eps.to(dtype), torch.from_numpy(arrays["in/t"])
    n_dimensions = x[0].numel()
    cases = sorted({key.split("/")[2] for key in arrays if key.startswith(f"{precision}/{group}/vel")})
    assert cases
    for case in cases:
        prefix = f"{precision}/{group}/{case}/"
        remaining = {key for key in arrays if key.startswith(prefix)}

        def near(name, actual, tolerance=tolerance, prefix=prefix, remaining=remaining):
            if prefix + name in arrays:
                assert_near(actual, arrays[prefix + name], tolerance, prefix + name)
                remaining.discard(prefix + name)

        velocity, importance, second_order = "vel1" in case, "imp1" in case, "so1" in case
        network, kind = ToyNetwork(arrays, velocity, dtype), parameterisation(velocity)
        terms = diffusion_terms(
            schedule, kind, network, x, t, noise, importance=importance, probe=probe if second_order else None,
            second_order_weight=float(arrays["in/second_order_weight"]),
        )  # fmt: skip
        ((z, _, prediction),) = network.calls
        gamma = torch.from_numpy(arrays[f"f64/{group}/{case}/g_t"])
        near("g_t", network.calls[0][1])
        near("alpha_t", schedule.alpha(gamma))
        near("sigma_t", schedule.sigma(gamma))
        near("z_t", z)
        near("F_hat", prediction)
        near("F_target", kind.target(schedule, z, noise, gamma))
        weight = loss_weight(schedule, kind, gamma, importance=importance)
        near("weight", weight)
        near("mse", terms["diffusion"] / weight)
        near("loss_diff", terms["diffusion"])
        second = terms.get("second_order", torch.zeros(len(x), dtype=torch.float64))
        near("loss_diff2", second)
        if second_order:
            (product,) = torch.autograd.grad(prediction, z, probe.to(dtype))
            near("F_div", (product * probe).flatten(1).sum(1))
        reconstruction = reconstruction_term(schedule, levels, eps_0, SCALE, published_behaviour=True)
        prior = prior_term(schedule, x)
        near("loss_recon", reconstruction, DECODER_TOLERANCE[precision])
        near("loss_klz", prior)
        near("z_0_rescaled", x + math.exp(schedule.gamma_min / 2) * eps_0.double())
        near("var_0", end_point(schedule, schedule.gamma_min)[1] ** 2)
        near("var_1", end_point(schedule, schedule.gamma_max)[1] ** 2)
        if importance:
            near("Z", 2 * weight[0] / schedule.velocity_scale**2)
        bits = in_bits_per_dimension({"r": reconstruction, "p": prior, "d": terms["diffusion"]}, n_dimensions, None)
        bound = sum(bits.values()).mean()
        near("bpd_eval", bound)
        near("bpd_train", bound + in_bits_per_dimension({"s": second}, n_dimensions, None)["s"].mean())
        assert not remaining


@pytest.mark.parametrize("group", [g for g in groups("losses") if f"{g}/decode_z" in load("idode", "losses")])
@pytest.mark.parametrize("precision", DTYPES)
def test_decoder(group, precision):
    arrays = load("idode", "losses")
    schedule = make_schedule(arrays, group)
    alpha, _ = end_point(schedule, schedule.gamma_min)
    z = images(arrays[f"{group}/decode_z"]).double() / alpha
    log_probabilities = level_log_probabilities(
        z[..., None], torch.arange(SCALE.n_levels), math.exp(schedule.gamma_min / 2), SCALE
    )
    expected = arrays[f"{precision}/{group}/decode_logprobs"]
    expected = np.moveaxis(expected, -2, -4)
    assert_near(log_probabilities, expected, DECODER_TOLERANCE[precision], "decode_logprobs")
    image = decode(schedule, images(arrays[f"{group}/gen_z0"]), SCALE, published_behaviour=True)
    assert_near(image, arrays[f"{precision}/{group}/gen_image"], 0, "gen_image")


@pytest.mark.parametrize("group", groups("losses"))
def test_correct_decoder_divides_by_alpha_once(group):
    arrays = load("idode", "losses")
    schedule = make_schedule(arrays, group)
    levels, eps_0 = images(arrays["in/images"]), images(arrays["in/eps_0"])
    alpha, sigma = end_point(schedule, schedule.gamma_min)
    z = alpha * SCALE.centers(levels) + sigma * eps_0.double()
    every = torch.arange(SCALE.n_levels)
    logits = -((expand(z.flatten() / alpha, every[None]) - SCALE.centers(every)) / (sigma / alpha)).square() / 2
    expected = -logits.log_softmax(1).gather(1, levels.flatten()[:, None].long()).reshape(len(levels), -1).sum(1)
    torch.testing.assert_close(reconstruction_term(schedule, levels, eps_0, SCALE), expected, rtol=1e-9, atol=1e-9)
