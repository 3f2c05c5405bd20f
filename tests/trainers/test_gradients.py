"""Gradients over micro-batches and ranks against sums computed by hand, on gloo ranks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.evaluators.ranks import run_ranks
from trainers.gradients import ObjectiveGradients
from util.distributed import Distributed
from util.noise import Noise

SMALL_BUCKETS = 1e-3
N_STEPS = 6


def on_ranks(world_size: int, folder: Path, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What ``function(distributed, *arguments)`` returns on every rank, in their order."""
    answers = run_ranks(world_size, folder, function, *arguments)
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return answers


def make_network() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 7), nn.SiLU(), nn.Linear(7, 7), nn.Linear(7, 3))
    network[2].requires_grad_(False)
    # Fills a small bucket of its own and never has a gradient.
    network.register_parameter("unused", nn.Parameter(torch.zeros(500)))
    return network


def micro_batch(rank: int, number: int) -> torch.Tensor:
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(100 * rank + number))


def loss_of(network: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    return network(inputs).square().sum()


def sums(
    distributed: Distributed, n_micro: int, bucket_mebibytes: float, compression: str = "none"
) -> tuple[list[torch.Tensor | None], torch.Tensor, list[float]]:
    network = make_network()
    gradients = ObjectiveGradients(
        lambda inputs: (loss_of(network, inputs), inputs[0, 0].item()),
        network.parameters(), [network], distributed, compression, bucket_mebibytes,
    )  # fmt: skip
    batches = [micro_batch(distributed.rank, number) for number in range(n_micro)]
    for _ in range(3):  # a later step must not find anything of an earlier one
        loss, asides = gradients(batches)
    return [parameter.grad for parameter in network.parameters()], loss, asides


def sums_by_hand(world_size: int, n_micro: int) -> tuple[list[torch.Tensor | None], torch.Tensor]:
    network = make_network()
    losses = [loss_of(network, micro_batch(rank, number)) for rank in range(world_size) for number in range(n_micro)]
    (loss := torch.stack(losses).sum()).backward()
    return [parameter.grad for parameter in network.parameters()], loss.detach()


@pytest.mark.parametrize(("world_size", "n_micro", "bucket_mebibytes"), [(1, 2, 25), (2, 1, 25), (3, 2, SMALL_BUCKETS)])
def test_sum_over_ranks_and_micro_batches(
    tmp_path: Path, world_size: int, n_micro: int, bucket_mebibytes: float
) -> None:
    found = on_ranks(world_size, tmp_path, sums, n_micro, bucket_mebibytes)
    expected, loss = sums_by_hand(world_size, n_micro)
    for rank, (gradients, _, asides) in enumerate(found):
        assert asides == [micro_batch(rank, number)[0, 0].item() for number in range(n_micro)]
        for first, same, gradient in zip(found[0][0], gradients, expected, strict=True):
            if gradient is None:
                assert same is None
            else:
                assert torch.equal(first, same)
                torch.testing.assert_close(same, gradient)
    torch.testing.assert_close(torch.stack([own for _, own, _ in found]).mean(), loss)


def test_compressed_gradients_are_rounded_and_the_same_on_all_ranks(tmp_path: Path) -> None:
    found = on_ranks(2, tmp_path, sums, 1, SMALL_BUCKETS, "bf16")
    expected, _ = sums_by_hand(2, 1)
    assert any(not torch.equal(own, sent) for own, sent in zip(expected, found[0][0], strict=True) if own is not None)
    for first, second, gradient in zip(found[0][0], found[1][0], expected, strict=True):
        if gradient is None:
            assert first is None
            assert second is None
            continue
        assert torch.equal(first, second)
        # Both parts and their sum are rounded to 8 bits.
        torch.testing.assert_close(first, gradient, rtol=0, atol=2**-7 * gradient.abs().max().item())


@dataclass
class Draws:
    """A micro-batch of numbers, and a stream of noise for it."""

    data: torch.Tensor
    noise: Noise


class Noisy(nn.Module):
    """What a pass changes: batch statistics, and the state of torch's generator."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Dropout(0.5), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6)
        )
        self.register_buffer("n_passes", torch.tensor(0))

    def forward(self, batch: Draws) -> torch.Tensor:
        self.n_passes += 1
        return self.layers(batch.data + batch.noise.normal(*batch.data.shape[1:])).square().sum()


def traces(distributed: Distributed) -> dict[str, Any]:
    """What the first call leaves behind, and what one pass without other ranks does."""
    torch.manual_seed(0)
    network = Noisy()
    alone = copy.deepcopy(network)
    found: dict[str, Any] = {}
    for name, net, ranks in (("found", network, distributed), ("expected", alone, Distributed())):
        batch = Draws(torch.ones(3, 2, 8, 8), Noise(1, "test", torch.arange(3) + 3 * distributed.rank))
        gradients = ObjectiveGradients(lambda b, net=net: (net(b), None), net.parameters(), [net], ranks)
        torch.manual_seed(5 + distributed.rank)
        gradients([batch])
        found[name] = {
            "random state": torch.get_rng_state(),
            "draws": torch.tensor(batch.noise.n_draws),
            **net.state_dict(),
        }
        found[f"{name} gradients"] = [parameter.grad for parameter in net.parameters()]
    return found


def test_passes_that_are_thrown_away_leave_no_trace(tmp_path: Path) -> None:
    ranks = on_ranks(2, tmp_path, traces)
    for rank in ranks:
        assert rank["expected"]["n_passes"] == rank["expected"]["draws"] == 1
        for name, value in rank["expected"].items():
            assert torch.equal(rank["found"][name], value), name
    for number, gradient in enumerate(ranks[0]["found gradients"]):
        of_each = [rank["expected gradients"][number] for rank in ranks]
        assert torch.equal(gradient, of_each[0] + of_each[1])


class Backwards(nn.Module):
    """Many layers of different sizes, used in another order than they are defined in."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [17, 31, 12, 45, 23, 9, 38, 17]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes[1:], sizes, strict=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in reversed(self.layers):
            x = layer(x).tanh()
        return x.square().sum()


def resumed_and_undisturbed(distributed: Distributed) -> list[dict[str, torch.Tensor]]:
    ends = []
    for interrupted in (False, True):
        torch.manual_seed(0)
        network, state = Backwards(), None
        for step in range(N_STEPS):
            if step == 0 or (interrupted and step == N_STEPS // 2):
                state, network = network.state_dict(), Backwards()
                network.load_state_dict(state)
                gradients = ObjectiveGradients(
                    lambda x, network=network: (network(x), None),
                    network.parameters(), [network], distributed, bucket_mebibytes=5e-3,
                )  # fmt: skip
            seed = torch.Generator().manual_seed(100 * distributed.rank + step)
            gradients([torch.randn(6, 17, generator=seed)])
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter -= 0.01 * parameter.grad
        ends.append(network.state_dict())
    return ends


def test_a_resumed_run_has_the_same_bits_on_three_ranks(tmp_path: Path) -> None:
    for undisturbed, resumed in on_ranks(3, tmp_path, resumed_and_undisturbed):
        for name, value in undisturbed.items():
            assert torch.equal(resumed[name], value), name


def places_of_gradients(distributed: Distributed) -> tuple[int, list[list[int]]]:
    network = Backwards()
    gradients = ObjectiveGradients(lambda x: (network(x), None), network.parameters(), [network], distributed)
    places = []
    for n_micro in (1, 2, 2):
        gradients([torch.ones(6, 17)] * n_micro)
        places.append([parameter.grad.data_ptr() for parameter in network.parameters()])
    return len({parameter.grad.untyped_storage().data_ptr() for parameter in network.parameters()}), places


def test_gradients_stay_in_the_buckets_in_which_they_are_sent(tmp_path: Path) -> None:
    for n_buckets, places in on_ranks(2, tmp_path, places_of_gradients):
        assert n_buckets == 1
        assert places[0] == places[1] == places[2]


def of_two_objectives(distributed: Distributed) -> list[list[torch.Tensor]]:
    torch.manual_seed(0)
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    x = torch.full((1, 4), 1.0 + distributed.rank)
    both = ObjectiveGradients(
        lambda scale: (second(first(scale * x)).sum(), None),
        [*first.parameters(), *second.parameters()], [], distributed,
    )  # fmt: skip
    one = ObjectiveGradients(lambda scale: (second(scale * x).sum(), None), second.parameters(), [], distributed)
    found = []
    for scale in (1.0, 2.0, 3.0):
        for gradients in (both, one):
            gradients([scale])
            found.append([parameter.grad.clone() for parameter in gradients.parameters])
    return found


def test_objectives_may_share_parameters(tmp_path: Path) -> None:
    alone = of_two_objectives(Distributed(0, 0, 1))
    for found in on_ranks(2, tmp_path, of_two_objectives):
        for gradients, of_first_rank in zip(found, alone, strict=True):
            second_weight, own = gradients[-2:], of_first_rank[-2:]
            # The bias of the last layer has a gradient of one from each rank.
            torch.testing.assert_close(second_weight[1], 2 * own[1])
    # Of inputs that are multiples of each other, the gradient of the second objective is one too.
    weights = [gradients[0] for gradients in found[1::2]]
    torch.testing.assert_close(weights[1], 2 * weights[0])
    torch.testing.assert_close(weights[0], torch.full((4, 4), 3.0))


def n_compiled_graphs(distributed: Distributed) -> int:
    graphs = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    network = nn.Sequential(*(nn.Linear(600, 600) for _ in range(4)))  # of 1.4 MiB each
    called = torch.compile(network, backend=backend)
    gradients = ObjectiveGradients(
        lambda x: (called(x).sum(), None), network.parameters(), [network], distributed, bucket_mebibytes=1
    )
    gradients([torch.ones(2, 600)])
    return len(graphs)


def test_a_compiled_network_is_cut_where_buckets_end(tmp_path: Path) -> None:
    assert n_compiled_graphs(Distributed()) == 1
    assert on_ranks(2, tmp_path, n_compiled_graphs) == [4, 4]
