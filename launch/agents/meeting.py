"""How ranks meet under torchrun, whose store survives a restart together with what dead ranks wrote into it."""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import torch.distributed as dist

from launch.places.topology import RankPlace, number
from launch.waiting import Waiting
from util.errors import RunFailed, UsageError

POLL_SECONDS = 0.2
CONNECT_SECONDS = 2.0
AGENT_STORE_VARIABLE = "TORCHELASTIC_USE_AGENT_STORE"
"""Where torchrun says whether its agent has opened the store, or rank 0 has to."""


def torchrun_store(
    place: RankPlace, waiting: Waiting, timeout_seconds: float, environment: Mapping[str, str] = os.environ
) -> dist.Store:
    """A part of torchrun's store that only the ranks of this start use, when all of them are there.

    Args:
        place: of this rank.
        waiting: bounds this.
        timeout_seconds: of what the store is used for afterwards.
        environment: says where the store is.

    Raises:
        UsageError: it does not say so.
        RunFailed: there is no store, or some rank did not come in time.
    """
    if not environment.get("MASTER_ADDR"):
        raise UsageError(waiting.line("MASTER_ADDR is not in the environment of this rank"))
    address, port = environment["MASTER_ADDR"], number(environment, "MASTER_PORT", waiting.line("torchrun sets it"))
    if not 0 < port < 1 << 16:
        raise UsageError(waiting.line(f"MASTER_PORT={port} in the environment of this rank is no port"))
    opens = place.rank == 0 and environment.get(AGENT_STORE_VARIABLE) != str(True)
    if not opens:
        _wait_for_listener(place, address, port, waiting)
    host, timeout = "localhost" if opens else address, timedelta(seconds=timeout_seconds)
    # In a thread, because the store waits for its first answer without any bound.
    opening = ThreadPoolExecutor(1).submit(
        lambda: dist.TCPStore(host, port, is_master=opens, timeout=timeout, wait_for_workers=False)
    )
    where = f"store at {address}:{port}"
    while not opening.done():
        _pause(waiting, f"rank {place.rank} waits for the {where}", f"rank {place.rank} got no answer of the {where}")
    try:
        store = opening.result()
    except RuntimeError as error:
        reason = str(error).split("\n", maxsplit=1)[0]
        raise RunFailed(waiting.line(f"rank {place.rank} cannot use the {where}: {reason}")) from None
    return meet(dist.PrefixStore("scorefleet", store), place, waiting)  # torchrun's agents meet in the store, too


def _wait_for_listener(place: RankPlace, address: str, port: int, waiting: Waiting) -> None:
    """Until somebody listens there. The store would wait without a word at first, and then with too many."""
    who = f"rank {place.rank}"
    while True:
        try:
            return socket.create_connection((address, port), timeout=CONNECT_SECONDS).close()
        except OSError as error:
            problem = error.strerror or str(error)
        what, failure = f"{who} waits for a store at {address}:{port}", f"{who} found no store at {address}:{port}"
        _pause(waiting, f"{what}: {problem}", f"{failure} ({problem})")


def meet(store: dist.Store, place: RankPlace, waiting: Waiting) -> dist.Store:
    """A part of the store that only the ranks of this start use.

    Without it a restarted rank may read the address of a rank that has ended, and wait for it in vain. torchrun's
    count of restarts is no help: nodes of one start may have different ones. So every start of rank 0 has a name, and
    the others join the newest name that none of their earlier starts has joined.

    Raises:
        RunFailed: some rank did not come in time.
    """
    if place.rank == 0:
        name = uuid.uuid4().hex
        store.set("start", name)
        # Only a rank 0 that still waits says that all are there: the others may join the name of one that has ended.
        while store.add(f"joined/{name}", 0) < place.world_size - 1:
            _wait(place, waiting)
        store.set(f"complete/{name}", "yes")
    else:
        name = _join(store, place, waiting)
        while not store.check([f"complete/{name}"]):
            if store.get("start").decode() != name:
                name = _join(store, place, waiting)  # that rank 0 has been replaced
            _wait(place, waiting)
    return dist.PrefixStore(f"start/{name}", store)


def _join(store: dist.Store, place: RankPlace, waiting: Waiting) -> str:
    while True:
        if store.check(["start"]):
            name = store.get("start").decode()
            if store.add(f"joined/{name}/{place.rank}", 1) == 1:
                store.add(f"joined/{name}", 1)
                return name
        _wait(place, waiting)


def _wait(place: RankPlace, waiting: Waiting) -> None:
    others = f"the other {place.world_size - 1} ranks"
    _pause(waiting, f"rank {place.rank} waits for {others}", f"rank {place.rank} did not meet {others}")


def _pause(waiting: Waiting, what: str, failure: str) -> None:
    waiting.remind(what)
    if not waiting.remaining:
        raise RunFailed(waiting.line(f"{failure} within {waiting.seconds:g} s (--rendezvous_timeout)"))
    time.sleep(POLL_SECONDS)
