"""Every system on a pretended GPU: the numbers of the CPU, and no waiting for the device where there need be none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.gpu.pretended import DEVICE, host, pretended_gpu
from tests.gpu.systems import SETTINGS, Model, data

N_STEPS = 2
SAMPLED_BY_ODE = ("idode", "idode second order", "indm")
ANSWERS_OF_AN_EVALUATION = 5
"""Transfers and waits for each right-hand side of an ODE: its time, state and derivative, and whether it is finite."""


def same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Equal but for the order in which a kernel of the CPU adds up."""
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@dataclass
class Trained:
    """One model on the CPU and one on the pretended GPU after the same steps."""

    name: str
    on_cpu: Model
    on_device: Model
    reported: list[tuple[dict[str, float], dict[str, float]]]
    counts: Counter[tuple[str, str]]

    def both(self, do: Callable[[Model], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        """What ``do`` makes on both, and how many transfers there were at each call of what the method heeds."""
        with sdpa_kernel(SDPBackend.MATH):
            expected = do(self.on_cpu)
        so_far: list[int] = []
        with pretended_gpu() as gpu, gpu.counting() as counts:
            self.on_device.method.heed = lambda: so_far.append(sum(counts.values()))
            found = host(do(self.on_device))
        return found, expected, so_far


@pytest.fixture(scope="module", params=SETTINGS)
def trained(request: pytest.FixtureRequest) -> Trained:
    name = request.param
    with sdpa_kernel(SDPBackend.MATH):
        on_cpu = Model(name, torch.device("cpu"))
        expected = [on_cpu.step() for _ in range(N_STEPS)]
    reported, all_counts = [], Counter()
    with pretended_gpu() as gpu:
        on_device = Model(name, DEVICE)
        for values in expected:
            take_step = on_device.prepare()
            with gpu.counting() as counts:
                found = take_step()
            all_counts += counts
            reported.append(({key: host(value).item() for key, value in found.items()}, values))
    return Trained(name, on_cpu, on_device, reported, all_counts)


def test_steps_wait_for_nothing_and_send_nothing(trained: Trained) -> None:
    assert trained.counts == Counter()


def test_steps_are_those_of_the_cpu(trained: Trained) -> None:
    for found, expected in trained.reported:
        assert found == pytest.approx(expected, rel=1e-5)
    for network, weights in trained.on_cpu.weights().items():
        for key, value in trained.on_device.weights()[network].items():
            same(value, weights[key])


def test_validation_loss(trained: Trained) -> None:
    def loss(model: Model) -> torch.Tensor:
        batch = data(model.config, 2, 9).to(model.device)
        return model.method.validation_loss(batch, model.noise("loss"))

    found, expected, _ = trained.both(loss)
    same(found, expected)


def test_samplers_with_fixed_steps_send_nothing_after_the_first(trained: Trained) -> None:
    found, expected, so_far = trained.both(lambda model: model.method.sample(model.noise("sample")).data)
    # Samplers amplify that order, and Langevin steps of a network that knows nothing can overflow, on both alike.
    largest = expected.nan_to_num(0.0, 0.0, 0.0).abs().max().item()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * largest, equal_nan=True)
    assert len(so_far) >= 4
    if trained.name in SAMPLED_BY_ODE:
        assert max(after - before for before, after in pairwise(so_far)) <= ANSWERS_OF_AN_EVALUATION
    else:
        assert so_far[-1] == so_far[0]


@pytest.mark.slow
def test_likelihoods_wait_a_fixed_number_of_times(trained: Trained) -> None:
    for name in trained.on_cpu.method.likelihoods:

        def likelihood(model: Model, name: str = name) -> torch.Tensor:
            batch = data(model.config, 2, 9).to(model.device)
            return model.method.likelihoods[name](batch, model.noise(name)).value

        found, expected, so_far = trained.both(likelihood)
        assert expected.isfinite().all()
        same(found, expected)
        assert max((after - before for before, after in pairwise(so_far)), default=0) <= ANSWERS_OF_AN_EVALUATION
