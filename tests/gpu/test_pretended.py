"""The pretended GPU notices what a step must not do, and refuses what a GPU refuses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

import tests.gpu.systems as systems
from tests.gpu.pretended import DEVICE, TO_DEVICE, TO_HOST, WAIT, PretendedGpu, host, pretended_gpu
from trainers.cld.method import ScoreMatching
from util.ema import ExponentialMovingAverage
from util.noise import Noise


@pytest.fixture
def gpu() -> Iterator[PretendedGpu]:
    with pretended_gpu() as pretended:
        yield pretended


def kinds(counts: dict[tuple[str, str], int]) -> dict[str, int]:
    found: dict[str, int] = {}
    for (what, _), number in counts.items():
        found[what] = found.get(what, 0) + number
    return found


@pytest.mark.usefixtures("gpu")
def test_tensors_say_where_they_are() -> None:
    x = torch.ones(3, 2).to(DEVICE)
    assert x.device == (2 * x + 1).sum().device == torch.zeros(3, device=DEVICE).device == DEVICE
    assert torch.tensor([1.0], device=DEVICE).device == DEVICE
    assert x.cpu().device.type == "cpu"
    assert (2 * x).tolist() == [[2.0, 2.0]] * 3


@pytest.mark.parametrize("operation", [torch.add, torch.matmul, torch.maximum])
@pytest.mark.usefixtures("gpu")
def test_tensors_of_two_devices_do_not_mix(operation) -> None:
    with pytest.raises(RuntimeError, match="two devices"):
        operation(torch.ones(2, 2).to(DEVICE), torch.ones(2, 2))
    # A number on the host goes with the kernel.
    assert host(operation(torch.ones(2, 2).to(DEVICE), torch.ones(2, 2).to(DEVICE))) is not None


@pytest.mark.usefixtures("gpu")
def test_a_backward_pass_refuses_too() -> None:
    class Careless(torch.autograd.Function):
        @staticmethod
        def forward(_context, x):
            return 2 * x

        @staticmethod
        def backward(_context, gradient):
            return gradient * torch.full((3,), 2.0)

    x = torch.ones(3).to(DEVICE).requires_grad_()
    with pytest.raises(RuntimeError, match="two devices"):
        Careless.apply(x).sum().backward()


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (lambda x: x.sum().item(), {WAIT: 1}),
        (lambda x: bool((x > 0).all()), {WAIT: 1}),
        (lambda x: x.nonzero(), {WAIT: 1}),
        (lambda x: x[x > 0], {WAIT: 1}),
        (lambda x: x[torch.tensor([0, 1])], {TO_DEVICE: 1}),
        (lambda x: torch.tensor([1.0, 2.0], device=DEVICE), {TO_DEVICE: 1}),
        (lambda x: x.copy_(torch.zeros(3)), {TO_DEVICE: 1}),
        (lambda x: x.cpu(), {TO_HOST: 1}),
        (lambda x: x.tolist(), {TO_HOST: 1}),
        (lambda x: x[x.argsort()], {}),
        (lambda x: x * torch.tensor(2.0), {}),
        (lambda x: torch.full((3,), 2.0, device=DEVICE), {}),
        (lambda x: x.fill_(2.0), {}),
        (lambda x: x[1:], {}),
    ],
)
def test_what_is_counted(gpu: PretendedGpu, act, expected) -> None:
    x = torch.ones(3).to(DEVICE)
    with gpu.counting() as counts:
        act(x)
    assert kinds(counts) == expected


@pytest.mark.usefixtures("gpu")
def test_averages_take_the_place_of_weights() -> None:
    """They exchange their storage, of which PyTorch tells a subclass of Tensor nothing."""
    network = nn.Linear(2, 1).to(DEVICE)
    average = ExponentialMovingAverage(network.named_parameters(), 0.5, warm_up=False)
    before = host(network.weight).clone()
    with torch.no_grad():
        network.weight += 2
    average.update()
    with average.average_weights():
        torch.testing.assert_close(host(network.weight), before + 1)
        x = torch.ones(1, 2).to(DEVICE)
        torch.testing.assert_close(host(network(x) - network.bias).sum(), (before + 1).sum())
    torch.testing.assert_close(host(network.weight), before + 2)


@pytest.mark.parametrize(
    ("careless", "expected"),
    [
        (lambda losses: losses * losses.mean().item(), {WAIT: 2}),
        (lambda losses: losses[torch.arange(len(losses))], {TO_DEVICE: 4}),
        (lambda losses: losses[losses > 0], {WAIT: 4}),
    ],
)
def test_a_careless_line_in_a_step_is_found(gpu: PretendedGpu, monkeypatch, careless, expected) -> None:
    """With the line that it stands in; a step has two micro-batches, and the backward pass takes what an index was."""
    model = systems.Model("cld on points", DEVICE)
    model.step()
    plain = ScoreMatching.losses
    monkeypatch.setattr(ScoreMatching, "losses", lambda *arguments: careless(plain(*arguments)))
    take_step = model.prepare()
    with gpu.counting() as counts:
        take_step()
    assert kinds(counts) == expected
    assert "tests/gpu/test_pretended.py" in {where.split(":")[0] for _, where in counts}


@pytest.mark.usefixtures("gpu")
def test_noise_is_the_same() -> None:
    indices = torch.arange(5)
    on_cpu, on_device = Noise(1, "x", indices), Noise(1, "x", indices.to(DEVICE), device=DEVICE)
    for draw in ("normal", "uniform", "rademacher"):
        assert torch.equal(host(getattr(on_device, draw)(3)), getattr(on_cpu, draw)(3))
