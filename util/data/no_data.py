"""What stands in for a data set where a system learns from none."""

from __future__ import annotations

import itertools
from collections.abc import Generator

import numpy as np
import torch

from util.data.loader import MicroBatch, Sender, Share


class NoData:
    """Black images without end; only their shape and number count. A ``Dataset``."""

    name = "no data"
    is_image = True
    length = None

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def read(self, indices: np.ndarray) -> torch.Tensor:
        return torch.zeros((len(indices), *self.shape), dtype=torch.uint8)


def positions_without_data(share: Share, device: torch.device) -> Generator[list[MicroBatch], None, None]:
    """This rank's share of each global batch, as ``util.data.loader.training_batches`` cuts it, without any data:
    ``data`` is empty."""
    send = Sender(device)
    for step in itertools.count(share.first_step):
        pieces = [torch.from_numpy(positions) for positions in share.positions(step)]
        yield send.arrived(send.begin([(torch.empty(len(positions), 0), positions) for positions in pieces]))
