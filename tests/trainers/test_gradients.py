"""The gradient reducer against a sum computed by hand, on gloo ranks."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from trainers.gradients import GradientReducer
from util.distributed import Distributed


def make_network() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 7), nn.SiLU(), nn.Linear(7, 7), nn.Linear(7, 3))
    network[2].requires_grad_(False)
    # Fills a small bucket of its own and never has a gradient.
    network.register_parameter("unused", nn.Parameter(torch.zeros(50)))
    return network


def loss_of(network: nn.Module, rank: int, micro: int) -> torch.Tensor:
    inputs = torch.randn(4, 5, generator=torch.Generator().manual_seed(100 * rank + micro))
    return network(inputs).square().sum()


def rank_main(rank: int, world_size: int, folder: str, n_micro: int, bucket_bytes: int) -> None:
    store = dist.FileStore(f"{folder}/store", world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    network = make_network()
    reducer = GradientReducer(network.parameters(), Distributed(rank, rank, world_size), bucket_bytes)
    for _ in range(2):  # a second step must not find anything of the first
        network.zero_grad()
        for micro in range(n_micro):
            if micro == n_micro - 1:
                reducer.begin()
            loss_of(network, rank, micro).backward()
        reducer.finish()
    torch.save([parameter.grad for parameter in network.parameters()], f"{folder}/rank_{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize(("world_size", "n_micro", "bucket_bytes"), [(2, 1, 1 << 20), (3, 2, 64)])
def test_sum_over_ranks_and_micro_batches(tmp_path: Path, world_size: int, n_micro: int, bucket_bytes: int) -> None:
    mp.spawn(rank_main, (world_size, str(tmp_path), n_micro, bucket_bytes), nprocs=world_size)
    network = make_network()
    for rank in range(world_size):
        for micro in range(n_micro):
            loss_of(network, rank, micro).backward()
    expected = [parameter.grad for parameter in network.parameters()]
    per_rank = [torch.load(tmp_path / f"rank_{rank}.pt", weights_only=True) for rank in range(world_size)]
    for found in per_rank:
        for first, same, gradient in zip(per_rank[0], found, expected, strict=True):
            if gradient is None:
                assert same is None
            else:
                assert torch.equal(first, same)
                torch.testing.assert_close(same, gradient)
