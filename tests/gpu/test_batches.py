"""Batches on their way to a GPU: one step ahead, as bytes, and flipped where they arrive."""

from __future__ import annotations

import numpy as np
import torch

from tests.gpu.pretended import DEVICE, TO_DEVICE, host, pretended_gpu
from tests.spelling import positions_without_data, training_batches
from util.data.image_array import ImageArray

SHARE = {"first_step": 3, "total_batch_size": 4, "rank": 0, "world_size": 1, "n_micro_batches": 2}


class Watched(ImageArray):
    """Images that count how often they are read."""

    n_reads = 0

    def read(self, indices: np.ndarray) -> torch.Tensor:
        self.n_reads += 1
        return super().read(indices)


def images() -> Watched:
    generator = torch.Generator().manual_seed(0)
    return Watched("random", torch.randint(0, 256, (16, 3, 4, 4), generator=generator, dtype=torch.uint8))


def batches(dataset: Watched, device: torch.device):
    return training_batches(dataset, **SHARE, seed=1, n_workers=0, device=device, random_flip=True)


def test_they_are_those_of_the_cpu() -> None:
    expected = batches(images(), torch.device("cpu"))
    steps = [next(expected) for _ in range(3)]
    with pretended_gpu():
        source = batches(images(), DEVICE)
        for step in steps:
            for found, piece in zip(next(source), step, strict=True):
                assert found.data.device == found.positions.device == DEVICE
                assert found.data.dtype == torch.uint8
                assert torch.equal(host(found.data), piece.data)
                assert torch.equal(host(found.positions), piece.positions)
                assert torch.equal(found.host_positions, piece.positions)
                assert found.host_positions.device.type == "cpu"


def test_a_gpu_has_the_next_one_already() -> None:
    here, there = images(), images()
    next(batches(here, torch.device("cpu")))
    assert here.n_reads == 2
    with pretended_gpu() as gpu:
        source = batches(there, DEVICE)
        next(source)
        assert there.n_reads == 4
        with gpu.counting() as counts:
            next(source)
        # Data and positions of two micro-batches, and nothing that is waited for.
        assert {what for what, _ in counts} == {TO_DEVICE}
        assert sum(counts.values()) == 4


def test_where_there_are_no_data_the_positions_are_on_both_sides() -> None:
    with pretended_gpu():
        for piece in next(positions_without_data(**SHARE, device=DEVICE)):
            assert piece.positions.device == DEVICE
            assert torch.equal(host(piece.positions), piece.host_positions)
