"""Data order and evaluation plans are exact partitions for any number of ranks."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluators.engine import _Run
from tests.spelling import batch_indices, training_batches

WORLD_SIZES = [1, 2, 3, 7, 64, 512, 1024]


class Counting:
    """Every sample is its own index."""

    name, shape, is_image = "counting", (1,), False

    def __init__(self, length: int | None) -> None:
        self.length = length

    def read(self, indices: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(indices.astype(np.float32))[:, None]


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("length", [None, 1000, 50_000])
def test_ranks_share_each_global_batch_exactly(world_size: int, length: int | None) -> None:
    n_micro = 2
    total = math.lcm(world_size * n_micro, 12)
    step = 5
    positions, samples = [], []
    for rank in range(world_size):
        batches = training_batches(
            Counting(length), seed=1, first_step=step, total_batch_size=total, rank=rank, world_size=world_size,
            n_micro_batches=n_micro, n_workers=0, device=torch.device("cpu"), random_flip=False,
        )  # fmt: skip
        for micro in next(batches):
            positions.append(micro.positions.numpy())
            samples.append(micro.data[:, 0].numpy().astype(np.int64))
        batches.close()
    assert np.array_equal(np.concatenate(positions), np.arange(step * total, (step + 1) * total))
    assert np.array_equal(np.concatenate(samples), batch_indices(1, step, total, length))


@pytest.mark.parametrize("total", [1, 3, 64, 1024])
def test_an_epoch_shows_every_sample_once(total: int) -> None:
    length = 3 * 1024
    epoch = np.concatenate([batch_indices(3, step, total, length) for step in range(length // total)])
    assert np.array_equal(np.sort(epoch), np.arange(length))


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize(("n_items", "chunk_size"), [(50_000, 128), (50_001, 64), (5, 8), (10_000, 9)])
def test_chunks_cover_every_item_once_and_every_rank_can_take_any(
    world_size: int, n_items: int, chunk_size: int, tmp_path: Path
) -> None:
    plan = _Run(tmp_path / "x.npz", n_items, chunk_size, {})
    items = torch.cat([plan.indices(chunk) for chunk in range(plan.n_chunks)])
    assert torch.equal(items, torch.arange(n_items))
    # Each rank begins with a share of its own; the first chunks of all ranks are as different as can be.
    missing = list(range(plan.n_chunks))
    starts = [rank * len(missing) // world_size for rank in range(world_size)]
    assert len(set(starts)) == min(world_size, len(missing))
