"""Learning rate, weight decay, gradient accumulation and averages against the recorded ones."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from tests.golden.vectors import load
from util.ema import ExponentialMovingAverage
from util.optimization import linear_learning_rate, make_optimizer

TOLERANCE = {"f32": 1e-5, "f64": 1e-9}


def runs():
    return sorted({key.split("/")[1] for key in load("idode", "optim") if key.startswith("f64/accum")})


@pytest.mark.parametrize("run", runs())
@pytest.mark.parametrize("precision", ["f32", "f64"])
def test_updates(run, precision):
    arrays = load("idode", "optim")
    dtype = {"f32": torch.float32, "f64": torch.float64}[precision]
    n_accumulated, decays = map(int, re.fullmatch(r"accum(\d+)_decay(\d)", run).groups())
    names = [key.removeprefix("in/params/") for key in arrays if key.startswith("in/params/")]
    parameters = {name: nn.Parameter(torch.from_numpy(arrays[f"in/params/{name}"].copy()).to(dtype)) for name in names}
    base, weight_decay = float(arrays["in/learning_rate"]), float(arrays["in/weight_decay"])
    ema_rate, n_steps = float(arrays["in/ema_rate"]), int(arrays["in/num_steps"])
    optimizer = make_optimizer(
        "AdamW",
        parameters.values(),
        base,
        weight_decay,
        (float(arrays["in/b1"]), float(arrays["in/b2"])),
        float(arrays["in/eps"]),
        without_decay=[parameter for name, parameter in parameters.items() if name.endswith("/bias")],
    )
    average = ExponentialMovingAverage(parameters.items(), ema_rate, warm_up=False)

    def near(key, actual, floor=0.0):
        expected = np.asarray(arrays[key], np.float64)
        tolerance = TOLERANCE[precision] * max(np.abs(expected).max(), floor)
        np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=0, atol=tolerance, err_msg=key)

    for i in range(n_steps):
        prefix = f"{precision}/{run}/step{i}/"
        learning_rate = linear_learning_rate(
            base, int(arrays["in/warmup_steps"]), i, n_steps=n_steps if decays else None
        )
        # In float32 the lowest rate is the difference of numbers of the size of the highest.
        near(f"{prefix}lr", learning_rate, floor=base)
        updated = (i + 1) % n_accumulated == 0
        if updated:
            for name, parameter in parameters.items():
                gradients = [arrays[f"in/grads/{j}/{name}"] for j in range(i + 1 - n_accumulated, i + 1)]
                parameter.grad = torch.from_numpy(np.stack(gradients)).to(dtype).mean(0)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.step()
            average.update()
        assert arrays[f"{prefix}ema_rate_used"] == pytest.approx(ema_rate if updated else 1.0, rel=1e-6)
        for name, parameter in parameters.items():
            near(f"{prefix}params/{name}", parameter.detach())
            near(f"{prefix}ema_params/{name}", average.shadow[name])
