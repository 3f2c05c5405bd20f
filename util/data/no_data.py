"""What stands in for a data set where a system learns from none."""

from __future__ import annotations

import itertools
from collections.abc import Generator

import numpy as np
import torch

from util.data.loader import MicroBatch


class NoData:
    """Black images without end; only their shape and number count. A ``Dataset``."""

    name = "no data"
    is_image = True
    length = None

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def read(self, indices: np.ndarray) -> torch.Tensor:
        return torch.zeros((len(indices), *self.shape), dtype=torch.uint8)


def positions_without_data(
    *, first_step: int, total_batch_size: int, rank: int, world_size: int, n_micro_batches: int
) -> Generator[list[MicroBatch], None, None]:
    """This rank's share of each global batch, as ``util.data.loader.training_batches`` cuts it, without any data.

    ``data`` is empty, and positions stay on the CPU: what is decided with them need not wait for a device.
    """
    size = total_batch_size // (world_size * n_micro_batches)
    for step in itertools.count(first_step):
        first = step * total_batch_size + rank * n_micro_batches * size
        pieces = torch.arange(first, first + n_micro_batches * size).split(size)
        yield [MicroBatch(torch.empty(size, 0), positions) for positions in pieces]
