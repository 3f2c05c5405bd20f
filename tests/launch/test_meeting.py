"""Ranks that are started again meet each other, not what earlier starts left in the store."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from launch.agents.meeting import meet
from launch.places.topology import RankPlace
from launch.waiting import Waiting
from tests.patience import PATIENCE
from util.errors import RunFailed


def place(rank: int) -> RankPlace:
    return RankPlace(rank, rank, 3, 3)


def test_every_start_has_a_part_of_the_store_to_itself() -> None:
    store = dist.HashStore()
    with ThreadPoolExecutor(8) as pool:
        first = list(pool.map(lambda rank: meet(store, place(rank), Waiting(PATIENCE)), [2, 1, 0]))
        first[0].set("address", "old")
        assert all(part.get("address") == b"old" for part in first)

        # The others are back before rank 0 is; what it left must not be taken for it.
        early = [pool.submit(meet, store, place(rank), Waiting(PATIENCE)) for rank in (1, 2)]
        with pytest.raises(TimeoutError):
            early[0].result(timeout=1)
        again = [pool.submit(meet, store, place(0), Waiting(PATIENCE)), *early]
        parts = [future.result(timeout=PATIENCE) for future in again]
    assert not parts[0].check(["address"])
    parts[0].set("address", "new")
    assert all(part.get("address") == b"new" for part in parts)


def test_a_rank_0_that_is_replaced_while_others_wait() -> None:
    store = dist.HashStore()
    with ThreadPoolExecutor(8) as pool:
        lost = pool.submit(meet, store, place(0), Waiting(1))
        waiting = pool.submit(meet, store, place(1), Waiting(PATIENCE))
        with pytest.raises(RunFailed, match="rank 0 did not meet the other 2 ranks within 1 s"):
            lost.result(timeout=PATIENCE)
        rest = [pool.submit(meet, store, place(rank), Waiting(PATIENCE)) for rank in (0, 2)]
        parts = [future.result(timeout=PATIENCE) for future in (*rest, waiting)]
    parts[0].set("address", "new")
    assert all(part.get("address") == b"new" for part in parts)
