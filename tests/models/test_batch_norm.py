"""Batch normalisation by the statistics of all ranks."""

import threading

import pytest
import torch

from models.residual_flow.batch_norm import SynchronizedBatchNorm, on_one_rank
from tests.patience import PATIENCE


class SumOverThreads:
    """Each thread is a rank: everyone's tensors are added up in the order of the ranks."""

    def __init__(self, n_ranks: int) -> None:
        self.barrier = threading.Barrier(n_ranks, timeout=PATIENCE)
        self.parts = [torch.empty(0)] * n_ranks
        self.rank = threading.local()
        self.n_calls = 0

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        self.parts[self.rank.value] = tensor
        self.barrier.wait()
        total = torch.stack(self.parts).sum(0)
        self.barrier.wait()
        self.n_calls += 1
        return total


def run(layer: torch.nn.Module, x: torch.Tensor, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    x = x.clone().requires_grad_()
    y = layer(x)
    (y * weights).sum().backward()
    return {"y": y.detach(), "x": x.grad, "weight": layer.weight.grad, "bias": layer.bias.grad}


@pytest.fixture
def data():
    torch.manual_seed(0)
    return 3 + 2 * torch.randn(7, 4, 5, 3, dtype=torch.float64), torch.randn(7, 4, 5, 3, dtype=torch.float64)


def new_layer(sum_over_ranks=on_one_rank) -> SynchronizedBatchNorm:
    layer = SynchronizedBatchNorm(4, sum_over_ranks).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, -2.0, 0.5, 3.0]))
        layer.bias.copy_(torch.tensor([0.0, 1.0, 2.0, 3.0]))
    return layer


def test_one_rank_is_ordinary_batch_norm(data):
    ours, theirs = new_layer(), torch.nn.BatchNorm2d(4).double()
    theirs.load_state_dict(ours.state_dict())
    expected = run(theirs, *data)
    for name, value in run(ours, *data).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-10)
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, theirs.state_dict()[name], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.eval()(data[0]), theirs.eval()(data[0]))


def test_ranks_of_different_sizes_are_as_one(data):
    x, weights = data
    expected_layer = new_layer()
    expected = run(expected_layer, x, weights)
    total = SumOverThreads(3)
    parts = [slice(0, 4), slice(4, 5), slice(5, 7)]
    layers = [new_layer(total) for _ in parts]
    results: list[dict[str, torch.Tensor]] = [{} for _ in parts]

    def rank(index: int) -> None:
        total.rank.value = index
        results[index] = run(layers[index], x[parts[index]], weights[parts[index]])

    threads = [threading.Thread(target=rank, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert total.n_calls == 3 * 2
    for name in ("y", "x"):
        torch.testing.assert_close(torch.cat([result[name] for result in results]), expected[name])
    for name in ("weight", "bias"):
        torch.testing.assert_close(sum(result[name] for result in results), expected[name])
    for layer in layers:
        for name, value in layer.state_dict().items():
            torch.testing.assert_close(value, expected_layer.state_dict()[name])


def test_evaluation_asks_no_other_rank(data):
    def refuse(_: torch.Tensor) -> torch.Tensor:
        raise AssertionError("a collective")

    layer = new_layer(refuse).eval()
    assert torch.isfinite(layer(data[0])).all()
    with pytest.raises(AssertionError, match="a collective"):
        layer.train()(data[0])
