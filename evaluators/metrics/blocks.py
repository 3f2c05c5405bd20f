"""Features a block of rows at a time: an array on disk is never in memory as a whole."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch


def check_features(generated: np.ndarray, real: np.ndarray) -> None:
    """Raise ValueError unless both are (N, D), with the same D."""
    for name, features in (("generated", generated), ("real", real)):
        if features.ndim != 2:
            raise ValueError(f"{name} features have shape {features.shape}; (samples, features) expected")
    if generated.shape[1] != real.shape[1]:
        raise ValueError(f"features of different dimensions: {generated.shape[1]} and {real.shape[1]}")


def read_rows(features: np.ndarray, start: int, stop: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Rows start to stop of (N, D) as float64 on a device.

    Raises:
        ValueError: a number is not finite; the message names the first such sample.
    """
    rows = torch.from_numpy(np.array(features[start:stop], dtype=np.float64)).to(device)
    finite = rows.isfinite().all(dim=1)
    if not finite.all():
        sample = start + int((~finite).nonzero()[0])
        raise ValueError(f"features of sample {sample} are not finite")
    return rows


def ranges(n: int, block: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of consecutive blocks of at most ``block`` of n rows."""
    for start in range(0, n, block):
        yield start, min(start + block, n)
