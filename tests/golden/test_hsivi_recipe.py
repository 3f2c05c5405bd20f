"""Learning-rate rules, clipping with AMSGrad Adam, and averages against recorded ones."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.golden.hsivi_setup import close
from tests.golden.vectors import load
from util.ema import ExponentialMovingAverage
from util.optimization import clip_gradients, decaying_learning_rate, make_optimizer

ARRAYS = load("hsivi", "recipe")


@pytest.mark.parametrize("rule", ["exp", "cosine"])
@pytest.mark.parametrize("network", ["phi", "f"])
def test_learning_rate(rule, network):
    base = float(ARRAYS[f"{rule}/base_lr_{network}"])
    n_warmup_iters, n_train_iters = (int(ARRAYS[f"{rule}/{name}"]) for name in ("n_warmup_iters", "n_train_iters"))
    rates = [
        decaying_learning_rate(base, n_warmup_iters, n_train_iters, rule == "cosine", int(iteration) - 1)
        for iteration in ARRAYS[f"{rule}/steps"]
    ]
    np.testing.assert_allclose(rates, ARRAYS[f"{rule}/lr_{network}"], rtol=1e-12)


def test_optimizer():
    initial, *expected = ARRAYS["optim/parameters"]
    parameter = nn.Parameter(torch.tensor(initial))
    optimizer = make_optimizer("Adam", [parameter], 1.0, amsgrad=True)
    for gradient, rate, after in zip(ARRAYS["optim/gradients"], ARRAYS["optim/lr"], expected, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = float(rate)
        parameter.grad = torch.tensor(gradient)
        clip_gradients([parameter], float(ARRAYS["optim/grad_clip"]))
        optimizer.step()
        close(parameter, after, 1e-5)


def test_average():
    initial, *values = ARRAYS["ema/parameter_sequence"]
    start, *expected = ARRAYS["ema/shadow_sequence"]
    parameter = nn.Parameter(torch.tensor(initial))
    average = ExponentialMovingAverage([("p", parameter)], float(ARRAYS["ema/rate"]))
    close(average.shadow["p"], start, 0.0)
    for value, after in zip(values, expected, strict=True):
        parameter.data.copy_(torch.tensor(value))
        average.update()
        close(average.shadow["p"], after, 1e-5)
