"""Processes started by mpirun agree on where they meet, through mpi4py, before any of them starts a rank."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from launch.agents.addresses import LOOPBACK, listen, reachable_address
from launch.options import LaunchOptions
from util.errors import EXIT_FAILED, UsageError

VARIABLES = ("OMPI_", "PMIX_", "PMI_", "PRTE_", "PRRTE_")
"""How names of variables begin that make a process one of mpirun's."""


@dataclass(frozen=True)
class Shared:
    """What the processes of an mpirun agreed on.

    Attributes:
        node_rank, n_nodes: of this process's node; nodes are in the order of their first process.
        one_rank_each: whether some node has several processes, so that each of them is one rank.
        master_address, master_port: of process 0.
        run_id: random.
        listener: on process 0, the socket that has the port.
    """

    node_rank: int
    n_nodes: int
    one_rank_each: bool
    master_address: str
    master_port: int
    run_id: str
    listener: socket.socket | None


def agree(options: LaunchOptions) -> Shared:
    """Called by every process of an mpirun; MPI is started and ended in it, so what follows knows nothing of it.

    Args:
        options: master_address and master_port, where process 0 is given them, come before what it would choose.

    Raises:
        UsageError: mpi4py is missing or broken; process 0 cannot listen where it was told to.
    """
    try:
        import mpi4py

        mpi4py.rc.initialize = False
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise UsageError(
            f"started by mpirun, but mpi4py cannot be used ({' '.join(str(error).split())}); pip install mpi4py, or "
            "give --n_nodes, --node_rank and --master_address"
        ) from None
    with _at_most(options.rendezvous_timeout):
        MPI.Init()
        world = MPI.COMM_WORLD
        hosts = world.allgather(socket.gethostname())
        nodes = list(dict.fromkeys(hosts))
        listener, problem = None, ""
        if world.rank == 0:
            try:
                address = options.master_address or (LOOPBACK if len(nodes) == 1 else reachable_address())
                listener = listen(address, options.master_port)
                offer = (address, listener.getsockname()[1], secrets.token_hex(8))
            except OSError as error:
                offer = ("", 0, "")
                problem = f"{error.strerror}; give --master_address and --master_port of the first node"
                problem = f"node 0 ({socket.gethostname()}) cannot listen at {address}:{options.master_port}: {problem}"
        else:
            offer = ("", 0, "")
        (address, port, run_id), problem = world.bcast((offer, problem), root=0)
        MPI.Finalize()
    if problem:
        raise UsageError(problem)
    return Shared(
        node_rank=nodes.index(socket.gethostname()),
        n_nodes=len(nodes),
        one_rank_each=len(nodes) < len(hosts),
        master_address=address,
        master_port=port,
        run_id=run_id,
        listener=listener,
    )


def without_mpi(environment: dict[str, str]) -> dict[str, str]:
    """The environment for a process that must not take itself for one of mpirun's."""
    return {name: value for name, value in environment.items() if not name.startswith(VARIABLES)}


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """End this process when the block takes longer; MPI's calls cannot be interrupted in another way."""

    def end() -> None:
        print(
            f"{socket.gethostname()}: MPI did not connect all processes within {seconds:g} s (--rendezvous_timeout)",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        os._exit(EXIT_FAILED)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
