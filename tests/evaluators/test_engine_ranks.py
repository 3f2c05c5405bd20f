"""The evaluation engine on several ranks: each item once, stopping together, going on with another number."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluators.engine import run_chunks
from tests.evaluators.ranks import run_ranks
from tests.patience import wait_for
from util.distributed import Distributed
from util.errors import Preempted

N_ITEMS, CHUNK_SIZE = 37, 3
N_CHUNKS = 13
OTHER_CHUNKS = ("numbers.chunks/*.npz", N_CHUNKS - 1)


def _run(
    distributed: Distributed,
    folder: Path,
    stop_rank: int | None = None,
    killed_rank: int | None = None,
    waiting_rank: int | None = None,
    awaited: tuple[str, int] = ("", 0),
) -> tuple[list[int], dict[str, np.ndarray] | None, bool]:
    """Indices computed on this rank, the arrays, and whether it was pre-empted.

    ``waiting_rank`` computes nothing until as many files are there as ``awaited``, a pattern and a number, says.
    """
    computed: list[int] = []

    def compute(indices: torch.Tensor) -> dict[str, torch.Tensor]:
        if distributed.rank == killed_rank and len(computed) >= CHUNK_SIZE:
            (folder / "killed").touch()
            os._exit(9)
        if distributed.rank == waiting_rank:
            pattern, number = awaited
            wait_for(lambda: len(list(folder.glob(pattern))) >= number, pattern)
        computed.extend(indices.tolist())
        return {"squares": indices.double() ** 2, "nfe": indices[0] + 1}

    def should_stop() -> bool:
        return distributed.rank == stop_rank and len(computed) >= 2 * CHUNK_SIZE

    try:
        arrays = run_chunks(
            folder / "numbers.npz", N_ITEMS, CHUNK_SIZE, compute, {"seed": 1}, distributed, "numbers", should_stop
        )
    except Preempted:
        return computed, None, True
    return computed, arrays, False


def _check(arrays: dict[str, np.ndarray] | None) -> None:
    assert arrays is not None
    np.testing.assert_array_equal(arrays["squares"], np.arange(N_ITEMS) ** 2.0)
    np.testing.assert_array_equal(arrays["nfe"], np.arange(0, N_ITEMS, CHUNK_SIZE) + 1)


@pytest.mark.parametrize("world_size", [2, 3])
def test_every_item_on_exactly_one_rank(tmp_path: Path, world_size: int) -> None:
    outcomes = run_ranks(world_size, tmp_path, _run, tmp_path / "shared")
    assert sorted(index for computed, _, _ in outcomes for index in computed) == list(range(N_ITEMS))
    _check(outcomes[0][1])
    assert all(arrays is None for _, arrays, _ in outcomes[1:])
    run_ranks(1, tmp_path, _run, tmp_path / "alone")
    assert (tmp_path / "shared/numbers.npz").read_bytes() == (tmp_path / "alone/numbers.npz").read_bytes()


def test_a_slow_rank_leaves_its_share_to_the_others(tmp_path: Path) -> None:
    (slow, _, _), (fast, _, _) = run_ranks(2, tmp_path, _run, tmp_path / "shared", None, None, 0, OTHER_CHUNKS)
    assert sorted(slow + fast) == list(range(N_ITEMS))
    assert len(slow) <= CHUNK_SIZE


@pytest.mark.parametrize("stop_rank", [0, 1])
def test_one_rank_told_to_stop_stops_all_and_another_number_goes_on(tmp_path: Path, stop_rank: int) -> None:
    told = ("numbers.chunks/claims_*/stop", 1)
    stopped = run_ranks(2, tmp_path, _run, tmp_path / "shared", stop_rank, None, 1 - stop_rank, told)
    assert [preempted for _, _, preempted in stopped] == [True, True]
    done = [index for computed, _, _ in stopped for index in computed]
    assert 2 * CHUNK_SIZE <= len(done) < N_ITEMS
    rest = run_ranks(3, tmp_path, _run, tmp_path / "shared")
    redone = [index for computed, _, _ in rest for index in computed]
    assert sorted(done + redone) == list(range(N_ITEMS))
    _check(rest[0][1])


def test_a_killed_rank_costs_its_unfinished_chunk_only(tmp_path: Path) -> None:
    killed = run_ranks(2, tmp_path, _run, tmp_path / "shared", None, 1, 0, ("killed", 1))
    assert killed[1] is None
    assert isinstance(killed[0], Exception)
    done = len(list((tmp_path / "shared/numbers.chunks").glob("*.npz")))
    # Rank 0 did every chunk but the two that rank 1 took, and rank 1 finished the first of them.
    assert done == N_CHUNKS - 1
    (computed, arrays, _) = run_ranks(1, tmp_path, _run, tmp_path / "shared")[0]
    assert len(computed) <= CHUNK_SIZE
    _check(arrays)
