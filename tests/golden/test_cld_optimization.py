"""Warm-up, clipping, optimiser and averages, five steps in the order of the training loop."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.golden import vectors
from util.ema import ExponentialMovingAverage
from util.optimization import clip_gradients, make_optimizer, warmed_up_learning_rate

TOLERANCE = 1e-6


def assert_near(actual: torch.Tensor, expected: np.ndarray) -> None:
    scale = max(float(np.abs(expected).max()), 1e-12)
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=TOLERANCE, atol=TOLERANCE * scale)


@pytest.fixture(scope="module")
def recorded():
    return vectors.load("cld", "ema_optim")


def test_training_steps(recorded):
    names = [key.removeprefix("param/") for key in recorded if key.startswith("param/")]
    trained = [key.removeprefix("grad/") for key in recorded if key.startswith("grad/")]
    network = nn.Module()
    for name in names:
        initial = torch.from_numpy(recorded[f"param/{name}"][0].copy())
        network.register_parameter(name, nn.Parameter(initial, requires_grad=name in trained))
    parameters = dict(network.named_parameters())

    learning_rate = float(recorded["hp/learning_rate"])
    optimizer = make_optimizer(
        str(recorded["hp/optimizer"]),
        network.parameters(),
        learning_rate,
        float(recorded["hp/weight_decay"]),
        (float(recorded["hp/adam_beta1"]), float(recorded["hp/adam_beta2"])),
        float(recorded["hp/adam_eps"]),
    )
    averages = {
        key: ExponentialMovingAverage(network.named_parameters(), float(recorded[f"hp/{decay}"]))
        for key, decay in (("ema", "ema_decay"), ("ema2", "ema_decay_2"))
    }
    for step in range(len(recorded["lr"])):
        lr = warmed_up_learning_rate(learning_rate, int(recorded["hp/n_warmup_iters"]), step)
        assert lr == pytest.approx(recorded["lr"][step], rel=1e-12)
        for group in optimizer.param_groups:
            group["lr"] = lr
        for name in trained:
            parameters[name].grad = torch.from_numpy(recorded[f"grad/{name}"][step].copy())
        norm = clip_gradients(network.parameters(), float(recorded["hp/grad_clip"]))
        assert float(norm) == pytest.approx(recorded["grad_norm"][step], rel=TOLERANCE)
        for name in trained:
            assert_near(parameters[name].grad, recorded[f"clipped_grad/{name}"][step])
        optimizer.step()
        for name in names:
            assert_near(parameters[name], recorded[f"param/{name}"][step + 1])
        for key, average in averages.items():
            average.update()
            assert list(average.shadow) == trained
            for name in trained:
                assert_near(average.shadow[name], recorded[f"{key}/{name}"][step])

    assert all(average.n_updates == recorded["ema_num_updates_final"] for average in averages.values())
    for name in trained:
        state = optimizer.state[parameters[name]]
        assert_near(state["exp_avg"], recorded[f"adam_m_final/{name}"])
        assert_near(state["exp_avg_sq"], recorded[f"adam_v_final/{name}"])
