"""How ranks meet under torchrun, whose store survives a restart together with what dead ranks wrote into it."""

from __future__ import annotations

import time
import uuid

import torch.distributed as dist

from launch.places.topology import RankPlace
from util.errors import RunFailed

POLL_SECONDS = 0.2


def meet(store: dist.Store, place: RankPlace, timeout_seconds: float) -> dist.Store:
    """A part of the store that only the ranks of this start use.

    Without it a restarted rank may read the address of a rank that has ended, and wait for it in vain. torchrun's
    count of restarts is no help: nodes of one start may have different ones. So every start of rank 0 has a name, and
    the others join the newest name that none of their earlier starts has joined.

    Raises:
        RunFailed: some rank did not come in time.
    """
    deadline = time.monotonic() + timeout_seconds
    if place.rank == 0:
        name = uuid.uuid4().hex
        store.set("start", name)
        # Only a rank 0 that still waits says that all are there: the others may join the name of one that has ended.
        while store.add(f"joined/{name}", 0) < place.world_size - 1:
            _wait(place, deadline, timeout_seconds)
        store.set(f"complete/{name}", "yes")
    else:
        name = _join(store, place, deadline)
        while not store.check([f"complete/{name}"]):
            if store.get("start").decode() != name:
                name = _join(store, place, deadline)  # that rank 0 has been replaced
            _wait(place, deadline, timeout_seconds)
    return dist.PrefixStore(f"start/{name}", store)


def _join(store: dist.Store, place: RankPlace, deadline: float) -> str:
    started = time.monotonic()
    while True:
        if store.check(["start"]):
            name = store.get("start").decode()
            if store.add(f"joined/{name}/{place.rank}", 1) == 1:
                store.add(f"joined/{name}", 1)
                return name
        _wait(place, deadline, deadline - started)


def _wait(place: RankPlace, deadline: float, timeout_seconds: float) -> None:
    if time.monotonic() > deadline:
        raise RunFailed(
            f"rank {place.rank} did not meet the other {place.world_size - 1} ranks within {timeout_seconds:.0f} s "
            "(--rendezvous_timeout)"
        )
    time.sleep(POLL_SECONDS)
