"""Warm-up, clipping, Adam and the average without a warm-up of its own, step by step."""

import pytest
import torch
from torch import nn

from tests.golden.cld_setup import Comparison
from tests.golden.vectors import load
from util.ema import ExponentialMovingAverage
from util.optimization import clip_gradients, make_optimizer, warmed_up_learning_rate

TOLERANCES = {"f32": 1e-4, "f64": 1e-6}
"""Clipping divides by the norm + 1e-6 where the public code divides by the norm."""


@pytest.mark.parametrize("precision", TOLERANCES)
def test_training_steps(precision):
    arrays = load("scoreflow", "optim")
    dtype = torch.float32 if precision == "f32" else torch.float64
    names = [key.removeprefix("in/params/") for key in arrays if key.startswith("in/params/")]
    network = nn.ParameterDict({name: torch.from_numpy(arrays[f"in/params/{name}"]).to(dtype) for name in names})
    learning_rate, betas = float(arrays["in/lr"]), (float(arrays["in/beta1"]), float(arrays["in/beta2"]))
    optimizer = make_optimizer(
        "Adam", network.parameters(), learning_rate, float(arrays["in/weight_decay"]), betas, float(arrays["in/eps"])
    )
    average = ExponentialMovingAverage(network.named_parameters(), float(arrays["in/ema"]), warm_up=False)
    recorded = Comparison(arrays, f"{precision}/")
    for step in range(int(arrays["in/num_steps"])):
        optimizer.param_groups[0]["lr"] = warmed_up_learning_rate(learning_rate, int(arrays["in/warmup"]), step)
        for name in names:
            network[name].grad = torch.from_numpy(arrays[f"in/grads/{step}/{name}"]).to(dtype)
        norm = clip_gradients(network.parameters(), float(arrays["in/grad_clip"]))
        recorded.close(f"step{step}/lr_effective", optimizer.param_groups[0]["lr"], 1e-6)
        recorded.close(f"step{step}/grad_norm", norm, TOLERANCES[precision])
        optimizer.step()
        average.update()
        for name in names:
            recorded.close(f"step{step}/params/{name}", network[name].detach(), TOLERANCES[precision])
            recorded.close(f"step{step}/ema/{name}", average.shadow[name], TOLERANCES[precision])
    recorded.nothing_left()
