"""Whole training iterations: alternation, frozen networks, both optimisers, averages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import trainers.hsivi.method
import trainers.step
from main import parse_config
from tests.golden.hsivi_setup import StandIn, close
from tests.golden.vectors import load
from tests.trainers.steps import take_step
from trainers.hsivi.method import HierarchicalMatching
from trainers.hsivi.options import HsiviOptions
from trainers.options import TrainingOptions
from util.config import Config
from util.data.loader import MicroBatch
from util.distributed import Distributed

ARRAYS = load("hsivi", "train_steps")
RUNS = sorted({key.split("/")[0] for key in ARRAYS if key.startswith("run")})
PARAMETERS = 1e-4
LOSS = 1e-3


def configure(run: dict[str, np.ndarray]) -> Config:
    channels, size, _ = run["init/log_scaled_gamma"].shape
    return parse_config(["--system", "hsivi"]).with_values(
        published_behaviour=True,
        image_channels=channels,
        image_size=size,
        noise_schedule="cosine" if run["cosine_schedule"] else "linear",
        skip_type="quad" if run["quad_timesteps"] else "uniform",
        n_discrete_steps=int(run["n_discrete_steps"]),
        total_batch_size=int(run["batch_size"]),
        n_train_iters=int(run["n_train_iters"]),
        n_warmup_iters=int(run["n_warmup_iters"]),
        ema_rate=float(run["ema_rate"]),
        grad_clip=float(run["grad_clip"]),
        eta=float(run["eta"]),
        phi_learning_rate=float(run["phi_learning_rate"]),
        f_learning_rate=float(run["f_learning_rate"]),
        f_learning_times=int(run["f_learning_times"]),
        cosine_lr_decay="use" if run["cosine_lr_decay_use"] else "dis",
    )


class RecordedNoise:
    """In place of ``Noise``: the numbers recorded for one loss, in the order in which they are asked for."""

    recorded: dict[str, np.ndarray]

    def __init__(self, _seed, purpose, indices, _step=0, _device="cpu") -> None:
        self.loss = purpose.split()[0]
        self.indices = indices
        self.draws = self.normals()

    def __len__(self) -> int:
        return len(self.indices)

    def of_loss(self, key: str) -> np.ndarray:
        return self.recorded[f"{self.loss}/{key}"]

    def integers(self, _high: int, *shape: int) -> torch.Tensor:
        drawn = torch.from_numpy(self.of_loss("rand_index_drawn"))[self.indices % self.batch_size()]
        return drawn.reshape(-1, *shape) - 1

    def batch_size(self) -> int:
        return len(self.of_loss("prior_noise"))

    def normals(self):
        layer, rollout = self.of_loss("layer_noise"), self.of_loss("rollout_noise")
        yield self.of_loss("prior_noise")
        if self.loss == "phi":
            yield layer
            yield from rollout
            return
        drawn, n = self.of_loss("rand_index_drawn"), self.n_points
        depths = np.concatenate([drawn, n - drawn])[: self.batch_size()]
        for passed in range(1, len(rollout) + 2):
            others = rollout[passed - 1] if passed <= len(rollout) else layer
            yield np.where((depths == passed)[:, None, None, None], layer, others)

    n_points: int

    def normal(self, *shape: int) -> torch.Tensor:
        drawn = torch.from_numpy(next(self.draws))
        assert drawn.shape[1:] == shape
        return drawn


@pytest.mark.parametrize("name", RUNS)
def test_iterations(name, monkeypatch):
    run = {key.removeprefix(f"{name}/"): value for key, value in ARRAYS.items() if key.startswith(f"{name}/")}
    config = configure(run)
    networks = iter(["teacher", "phi", "f"])

    def make_network(_config: Config, _device: torch.device) -> nn.Module:
        return StandIn(ARRAYS[f"stand_in/{next(networks)}"])

    monkeypatch.setattr(trainers.hsivi.method, "make_noise_network", make_network)
    for module in (trainers.hsivi.method, trainers.step):
        monkeypatch.setattr(module, "Noise", RecordedNoise)
    RecordedNoise.n_points = config[HsiviOptions].n_discrete_steps
    method = HierarchicalMatching(config, Distributed())
    np.testing.assert_array_equal(method.hierarchy.labels, run["timesteps"][: RecordedNoise.n_points])
    with torch.no_grad():
        for values in (method.log_gamma, method.state.emas["phi"].shadow["log_scaled_gamma"]):
            values.copy_(torch.from_numpy(run["init/log_scaled_gamma"]))
    teacher = method.teacher.w.clone()
    method.state.step = int(run["start_step"]) - 1
    positions = torch.arange(config[TrainingOptions].total_batch_size)

    for iteration in range(int(run["n_iterations"])):
        prefix = f"iter{iteration}/"
        recorded = {key.removeprefix(prefix): value for key, value in run.items() if key.startswith(prefix)}
        RecordedNoise.recorded = recorded
        first = method.state.step * len(positions)
        metrics = take_step(method, [MicroBatch(torch.empty(0), first + positions)])
        assert method.state.step == recorded["step"]
        assert ("phi_loss" in metrics) == recorded["phi_updated"]
        for loss, before in (("f", ""), ("phi", "phi_")):
            if f"{before}loss" in metrics:
                close(metrics[f"{before}loss"], recorded[f"{loss}/loss"], LOSS)
                close(metrics[f"{before}gradient_norm"], recorded[f"{loss}/grad_norm_before_clip"], LOSS)
                close(metrics[f"{before}learning_rate"], recorded[f"{loss}/lr"], 1e-12)
        averages = method.state.emas
        close(method.phi.w, recorded["after/phi_w"], PARAMETERS)
        close(method.log_gamma, recorded["after/phi_log_scaled_gamma"], PARAMETERS)
        close(method.f.w, recorded["after/f_w"], PARAMETERS)
        close(averages["phi"].shadow["w"], recorded["after/ema_phi_w"], PARAMETERS)
        close(averages["phi"].shadow["log_scaled_gamma"], recorded["after/ema_phi_log_scaled_gamma"], PARAMETERS)
        close(averages["f"].shadow["w"], recorded["after/ema_f_w"], PARAMETERS)
    assert torch.equal(method.teacher.w, teacher)
