"""Perturbation, score and losses against the recorded ones."""

import pytest
import torch

from diffusion.continuous.kernel import kernel_mean, loss_multiplier, noise_multiplier, perturb
from diffusion.continuous.losses import WEIGHTINGS, score_matching_loss, training_times
from diffusion.continuous.process import initial_state, split
from diffusion.continuous.score import make_score
from tests.golden.cld_setup import Comparison, PointwiseNetwork, make_process
from tests.golden.vectors import load

FLOAT64 = 1e-12
FLOAT64_OF_SMALL_TIMES = 1e-6
FLOAT32 = 1e-5


@pytest.mark.parametrize("name", ["perturb_loss_cld_hsm", "perturb_loss_cld_dsm", "perturb_loss_vpsde"])
def test_loss_and_everything_on_the_way(name):
    arrays = load("cld", name)
    process = make_process(arrays, "dsm" if "v0_noise" in arrays else "hsm")
    comparison = Comparison(arrays, "")
    x0, r, noise = (torch.from_numpy(arrays[key]) for key in ("x0", "r", "noise"))
    velocity_noise = torch.from_numpy(arrays["v0_noise"]) if "v0_noise" in arrays else None
    loss_eps = float(arrays["hp/loss_eps"])

    t = training_times(r, loss_eps)
    comparison.relative("t", t, FLOAT64)
    u0 = initial_state(process, x0, velocity_noise)
    if "v0" in arrays:
        comparison.close("v0", split(process, u0)[1], FLOAT32)
    comparison.close("mean", kernel_mean(process, u0, t), FLOAT64_OF_SMALL_TIMES)
    comparison.close("scaled_noise", perturb(process, torch.zeros_like(u0), noise, t), FLOAT64_OF_SMALL_TIMES)
    perturbed = perturb(process, u0, noise, t)
    comparison.close("perturbed", perturbed, FLOAT64_OF_SMALL_TIMES)
    comparison.close("perturbed_f32", perturbed.float(), FLOAT64_OF_SMALL_TIMES)
    comparison.relative("noise_multiplier", noise_multiplier(process, t), FLOAT64_OF_SMALL_TIMES)
    comparison.relative("loss_multiplier", loss_multiplier(process, t), FLOAT64)
    if "mixed/var_vv" in arrays:
        unit_state = torch.ones(len(t), 2, dtype=torch.float64)
        comparison.relative(
            "mixed/var_vv", -1 / process.analytic_score(unit_state, t)[:, 0], FLOAT64_OF_SMALL_TIMES
        )

    network = PointwiseNetwork(arrays, "net")
    recorded_state = torch.from_numpy(arrays["perturbed_f32"])
    comparison.close("net_out", network(recorded_state, t.float()), FLOAT32)
    for parameterisation in ("mixed", "plain"):
        score = make_score(process, network, mixed=parameterisation == "mixed")
        result = score(recorded_state, t)
        assert result.dtype == torch.float32
        for sample, recorded in zip(result, arrays[f"{parameterisation}/score"], strict=True):
            Comparison({"score": recorded}, "").close("score", sample, FLOAT32)
        comparison.remaining.discard(f"{parameterisation}/score")
        for weighting in WEIGHTINGS:
            loss = score_matching_loss(
                process, score, x0, r, noise, velocity_noise, weighting=weighting, loss_eps=loss_eps
            )
            assert loss.dtype == torch.float64
            comparison.relative(f"{parameterisation}/loss_{weighting}", loss, FLOAT32)
    hyper_parameters = [key for key in arrays if key.startswith("hp/")]
    comparison.nothing_left("x0", "r", "noise", "v0_noise", "net/W", "net/b", "net/a", *hyper_parameters)
