"""A process that mpirun started: by mpi4py it agrees with the others on where they meet, before there are ranks."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from launch.addresses import LOOPBACK, listen, reachable_address
from launch.options import LaunchOptions
from launch.places import flags
from launch.places.topology import Topology, agree, number, one_for_each_node, ranks_of_node
from util.errors import EXIT_FAILED, UsageError

VARIABLES = ("OMPI_COMM_WORLD_RANK",)
PREFIXES = ("OMPI_", "PMIX_", "PMI_", "PRTE_", "PRRTE_")
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


def find(options: LaunchOptions, environment: Mapping[str, str]) -> Topology:
    """The agent of this process. Every process of the mpirun has to call it.

    Raises:
        UsageError: the flags say something else, or as ``meet``.
    """
    rank, size, local_rank, local_size = (
        number(
            environment,
            f"OMPI_COMM_WORLD_{name}",
            "start main.py with mpirun itself, or give --n_nodes, --node_rank and --master_address in a clean "
            "environment",
        )
        for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
    )
    if flags.name_every_node(options):
        one_for_each_node("mpirun", local_size)
        if size > 1:  # one mpirun on each node is as good as one ssh
            agree("--n_nodes", options.n_nodes, f"mpirun started {size} nodes", size)
        return flags.find(options, environment)
    shared = meet(options)
    agree("--n_nodes", options.n_nodes, f"mpirun started {shared.n_nodes} nodes", shared.n_nodes)
    if options.node_rank >= 0 and not shared.one_rank_each:
        agree("--node_rank", options.node_rank, f"mpirun made this node {shared.node_rank}", shared.node_rank, least=0)
    if shared.one_rank_each:
        started = f"mpirun started {local_size} processes on this node"
        agree("--n_gpus_per_node", options.n_gpus_per_node, started, local_size)
    elif hasattr(os, "sched_setaffinity"):
        # mpirun binds a process to one core or socket, which all ranks and data loaders of the node would inherit.
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    n_ranks = 1 if shared.one_rank_each else ranks_of_node(options)
    return Topology(
        n_agents=size,
        agent_rank=rank,
        node_rank=shared.node_rank,
        n_ranks=n_ranks,
        first_local_rank=local_rank if shared.one_rank_each else 0,
        local_world_size=local_size if shared.one_rank_each else n_ranks,
        master_address=shared.master_address,
        master_ports=(shared.master_port,),
        listen_address=shared.master_address,
        run_id=shared.run_id,
        listener=shared.listener,
        impatient=True,
    )


def meet(options: LaunchOptions) -> Shared:
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
    return {name: value for name, value in environment.items() if not name.startswith(PREFIXES)}


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
