"""A process that mpirun started: by mpi4py it agrees with the others on where they meet, before there are ranks."""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import socket
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from launch.addresses import LOOPBACK, listen, reachable_address
from launch.agents.beat import end_with_parent
from launch.options import LaunchOptions
from launch.places import flags
from launch.places.topology import Topology, agree, number, one_for_each_node, ranks_of_node
from launch.waiting import Waiting, went_by
from util.errors import EXIT_FAILED, RunFailed, UsageError

VARIABLES = ("OMPI_COMM_WORLD_RANK",)
PREFIXES = ("OMPI_", "PMIX_", "PMI_", "PRTE_", "PRRTE_")
"""How names of variables begin that make a process one of mpirun's."""
MAXIMUM_ANSWER = 1 << 16


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
        UsageError, RunFailed: the flags say something else, or as ``meet``.
    """
    names = [f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")]
    advice = "start main.py with mpirun itself, or give --n_nodes, --node_rank and --master_address in a clean "
    rank, size, local_rank, local_size = (number(environment, name, f"{advice}environment") for name in names)
    if flags.name_every_node(options):
        one_for_each_node("mpirun", local_size)
        if size > 1:  # one mpirun on each node is as good as one ssh
            agree("--n_nodes", options.n_nodes, f"mpirun started {size} nodes", size)
        return flags.find(options, environment)
    origin = went_by("mpirun", environment, names)
    shared = meet(options, size, Waiting(options.rendezvous_timeout, origin))
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
        went_by=origin,
    )


def meet(options: LaunchOptions, size: int, waiting: Waiting) -> Shared:
    """Called by every process of an mpirun.

    MPI is started and ended in a process of its own: neither a start that hangs nor one that MPI aborts is the end of
    this one, and what follows knows nothing of it.

    Args:
        options: master_address and master_port, where process 0 is given them, come before what it would choose.
        size: how many processes mpirun has started, by the environment.
        waiting: bounds it.

    Raises:
        UsageError: mpi4py is missing or broken; process 0 cannot listen where it was told to.
        RunFailed: MPI did not connect so many processes in time.
    """
    host = socket.gethostname()
    ours, theirs = socket.socketpair()
    parent, child = os.getpid(), os.fork()
    if child == 0:
        try:
            end_with_parent(parent, signal.SIGKILL)
            ours.close()
            answer, listener = _agree(options)
            socket.send_fds(theirs, [json.dumps(answer).encode()], [] if listener is None else [listener.fileno()])
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(EXIT_FAILED)  # whether it has failed is told by the answer
    theirs.close()
    with ours:
        while not select.select([ours], [], [], waiting.until_reminder)[0]:
            waiting.remind(f"{host} waits for MPI to connect all {size} processes")
            if not waiting.remaining:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                text = f"{host}: MPI did not connect all {size} processes within {waiting.seconds:g} s"
                raise RunFailed(waiting.line(f"{text} (--rendezvous_timeout)"))
        block, descriptors, _, _ = socket.recv_fds(ours, MAXIMUM_ANSWER, 1)
    os.waitpid(child, 0)
    if not block:
        raise RunFailed(waiting.line(f"{host}: MPI failed to connect all {size} processes"))
    answer = json.loads(block)
    if "problem" in answer:
        raise UsageError(answer["problem"])
    if (found := answer.pop("n_processes")) != size:
        text = f"{host}: mpirun started {size} processes, but MPI connected {found}: either mpirun has ended, or mpi4py"
        raise RunFailed(waiting.line(f"{text} was built for another MPI"))
    return Shared(**answer, listener=socket.socket(fileno=descriptors[0]) if descriptors else None)


def _agree(options: LaunchOptions) -> tuple[dict[str, Any], socket.socket | None]:
    """What this process knows when MPI has connected them, or the problem; on process 0 with its listening socket."""
    try:
        import mpi4py

        mpi4py.rc.initialize = False
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        problem = f"started by mpirun, but mpi4py cannot be used ({' '.join(str(error).split())}); pip install mpi4py, "
        return {"problem": f"{problem}or give --n_nodes, --node_rank and --master_address"}, None
    MPI.Init()
    world = MPI.COMM_WORLD
    hosts = world.allgather(socket.gethostname())
    nodes = list(dict.fromkeys(hosts))
    listener, offer, problem = None, ("", 0, ""), ""
    if world.rank == 0:
        address = options.master_address or (LOOPBACK if len(nodes) == 1 else reachable_address())
        try:
            listener = listen(address, options.master_port)
            offer = (address, listener.getsockname()[1], secrets.token_hex(8))
        except OSError as error:
            problem = f"{error.strerror}; give --master_address and --master_port of the first node"
            problem = f"node 0 ({hosts[0]}) cannot listen at {address}:{options.master_port}: {problem}"
    (address, port, run_id), problem = world.bcast((offer, problem), root=0)
    MPI.Finalize()
    if problem:
        return {"problem": problem}, None
    answer = {
        "n_processes": len(hosts),
        "node_rank": nodes.index(socket.gethostname()),
        "n_nodes": len(nodes),
        "one_rank_each": len(nodes) < len(hosts),
        "master_address": address,
        "master_port": port,
        "run_id": run_id,
    }
    return answer, listener


def without_mpi(environment: dict[str, str]) -> dict[str, str]:
    """The environment for a process that must not take itself for one of mpirun's."""
    return {name: value for name, value in environment.items() if not name.startswith(PREFIXES)}
