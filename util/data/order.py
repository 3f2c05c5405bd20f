"""Which samples training step k reads: a function of (seed, k) alone, on any number of ranks."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from util.noise import derive_seed


# Two epochs at most are in use at once: the one that a batch ends and the one that it begins.
@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, length: int) -> np.ndarray:
    """A permutation int64 (length,).

    Sorting raw random words, and not numpy's own shuffle, because numpy keeps the words of a generator the
    same from release to release but not what it makes of them.
    """
    words = np.random.Philox(key=derive_seed(seed, "epoch order", epoch)).random_raw(length)
    order = np.argsort(words, kind="stable")
    order.flags.writeable = False
    return order


def batch_indices(
    seed: int, step: int, global_batch_size: int, length: int | None, *, one_order: bool = False
) -> np.ndarray:
    """The sample indices of one global batch.

    Batch k takes positions k B to (k + 1) B - 1 of an endless stream of epochs, each a fresh permutation of
    the data set; an epoch that ends inside a batch is followed by the next one in the same batch.

    Args:
        seed: the run's seed.
        step: k, from 0.
        global_batch_size: B, over all ranks; may exceed ``length``.
        length: number of samples N, or None for an endless set, whose indices are the positions themselves.
        one_order: every epoch has the same order, as in the public CLD code, which never
            reshuffles.

    Returns:
        int64 (B,).
    """
    first, last = step * global_batch_size, (step + 1) * global_batch_size
    if length is None:
        return np.arange(first, last, dtype=np.int64)
    parts = []
    for epoch in range(first // length, (last - 1) // length + 1):
        order = _epoch_order(seed, 0 if one_order else epoch, length)
        parts.append(order[max(first - epoch * length, 0) : last - epoch * length])
    return np.concatenate(parts)
