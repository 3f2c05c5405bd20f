"""Where this process is: an agent that starts the ranks of its node (or one of them), or a rank already."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from launch.agents.addresses import LOOPBACK
from launch.options import LaunchOptions
from launch.places.slurm import slurm_place
from util.errors import UsageError

DEFAULT_MASTER_PORT = 29417
"""Where node 0 listens when the flags name several nodes and no port."""
GPU_DEVICE_FILES = ("nvidia[0-9]*", "nvidiactl", "kfd", "dxg")


@dataclass(frozen=True)
class Topology:
    """The agents of the run, as one of them sees them.

    Attributes:
        n_agents: agents of the run: one for each node, or one for each rank.
        agent_rank: of this agent.
        node_rank: index of this node among the nodes.
        n_ranks: ranks that this agent starts.
        first_local_rank: local rank of the first of them.
        local_world_size: ranks on this node.
        master_address: of agent 0; empty where agent 0 listens on every interface and nobody connects from elsewhere.
        master_ports: where agent 0 may be found, in the order in which they are tried.
        run_id: known to the agents of this run alone; empty where they have no common source of it.
        source: what the agents were started by, for messages.
        listener: the socket of agent 0, where it had to be opened before the others could know its port.
    """

    n_agents: int = 1
    agent_rank: int = 0
    node_rank: int = 0
    n_ranks: int = 1
    first_local_rank: int = 0
    local_world_size: int = 1
    master_address: str = LOOPBACK
    master_ports: tuple[int, ...] = (0,)
    run_id: str = ""
    source: str = "one node"
    listener: socket.socket | None = field(default=None, compare=False)

    @property
    def one_rank_each(self) -> bool:
        """Whether several agents share this node, each with one rank."""
        return self.local_world_size > self.n_ranks

    @property
    def place(self) -> str:
        """This agent, for messages."""
        host = socket.gethostname()
        return host if self.n_agents == 1 else f"node {self.node_rank} ({host})"


@dataclass(frozen=True)
class RankPlace:
    """A rank's place, as its launcher (our agent or torchrun) wrote it into the environment."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int


def rank_place(options: LaunchOptions, environment: Mapping[str, str] = os.environ) -> RankPlace | None:
    """The place of this process if a launcher made it a rank, else None.

    Raises:
        UsageError: the environment names a rank but is incomplete, contradicts itself or the flags.
    """
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return None
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    try:
        rank, local_rank, world_size, local_world_size = (int(environment[name]) for name in names)
    except (KeyError, ValueError):
        given = ", ".join(f"{name}={environment.get(name, '(unset)')}" for name in names)
        raise UsageError(
            f"the environment names a rank but is incomplete ({given}); unset RANK or use torchrun"
        ) from None
    if not 0 <= rank < world_size or not 0 <= local_rank < local_world_size:
        raise UsageError(f"RANK={rank} and LOCAL_RANK={local_rank} do not fit WORLD_SIZE={world_size}; unset RANK")
    if "TORCHELASTIC_RUN_ID" in environment:
        n_nodes = _number(environment, "GROUP_WORLD_SIZE")
        _agree("--n_nodes", options.n_nodes, f"torchrun started {n_nodes} nodes", n_nodes)
        started = f"torchrun started {local_world_size} processes on each node"
        _agree("--n_gpus_per_node", options.n_gpus_per_node, started, local_world_size)
    return RankPlace(rank, local_rank, world_size, local_world_size)


def find_topology(options: LaunchOptions, environment: Mapping[str, str] = os.environ) -> Topology:
    """The agents of the run: from flags, Open MPI or Slurm, in this order; else this machine alone.

    Under Open MPI this is collective: every process of the job has to call it.

    Raises:
        UsageError: sources that contradict each other, or are incomplete.
    """
    if "OMPI_COMM_WORLD_RANK" in environment:
        return _under_open_mpi(options, environment)
    if _is_slurm_step(environment):
        return _under_slurm(options, environment)
    return _from_flags(options)


def _from_flags(options: LaunchOptions) -> Topology:
    n_nodes = options.n_nodes or 1
    if n_nodes == 1 and options.node_rank <= 0:
        n_ranks = _ranks_of_node(options)
        address = options.master_address or LOOPBACK
        return Topology(
            n_ranks=n_ranks, local_world_size=n_ranks, master_address=address, master_ports=(options.master_port,)
        )
    if options.node_rank >= n_nodes:
        raise UsageError(f"--node_rank {options.node_rank} with --n_nodes {n_nodes}: node ranks count from 0")
    if options.node_rank < 0:
        raise UsageError(f"--n_nodes {n_nodes} needs --node_rank (0 to {n_nodes - 1}), or mpirun, srun or torchrun")
    if not options.master_address:
        raise UsageError(f"--n_nodes {n_nodes} needs --master_address: the address of node 0, the same on every node")
    n_ranks = _ranks_of_node(options)
    return Topology(
        n_agents=n_nodes,
        agent_rank=options.node_rank,
        node_rank=options.node_rank,
        n_ranks=n_ranks,
        local_world_size=n_ranks,
        master_address=options.master_address,
        master_ports=(options.master_port or DEFAULT_MASTER_PORT,),
        source="flags",
    )


def _by_flags(options: LaunchOptions) -> bool:
    """Whether the flags say all that several nodes need, so that nothing is to be agreed on."""
    return options.n_nodes > 1 and options.node_rank >= 0 and bool(options.master_address)


def _under_open_mpi(options: LaunchOptions, environment: Mapping[str, str]) -> Topology:
    size = _number(environment, "OMPI_COMM_WORLD_SIZE")
    local_size = _number(environment, "OMPI_COMM_WORLD_LOCAL_SIZE")
    if _by_flags(options):
        _one_for_each_node("mpirun", local_size)
        if size > 1:  # one mpirun on each node is as good as one ssh
            _agree("--n_nodes", options.n_nodes, f"mpirun started {size} nodes", size)
        return _from_flags(options)
    from launch.places.open_mpi import agree  # mpi4py, which only Open MPI's processes need

    shared = agree(options)
    _agree("--n_nodes", options.n_nodes, f"mpirun started {shared.n_nodes} nodes", shared.n_nodes)
    if options.node_rank >= 0 and not shared.one_rank_each:
        _agree("--node_rank", options.node_rank, f"mpirun made this node {shared.node_rank}", shared.node_rank, least=0)
    if shared.one_rank_each:
        started = f"mpirun started {local_size} processes on this node"
        _agree("--n_gpus_per_node", options.n_gpus_per_node, started, local_size)
    else:
        _use_every_core()
    n_ranks = 1 if shared.one_rank_each else _ranks_of_node(options)
    return Topology(
        n_agents=size,
        agent_rank=_number(environment, "OMPI_COMM_WORLD_RANK"),
        node_rank=shared.node_rank,
        n_ranks=n_ranks,
        first_local_rank=_number(environment, "OMPI_COMM_WORLD_LOCAL_RANK") if shared.one_rank_each else 0,
        local_world_size=local_size if shared.one_rank_each else n_ranks,
        master_address=shared.master_address,
        master_ports=(shared.master_port,),
        run_id=shared.run_id,
        source="Open MPI",
        listener=shared.listener,
    )


def _is_slurm_step(environment: Mapping[str, str]) -> bool:
    # A batch script has SLURM_PROCID too, but only srun starts it on every node.
    return "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment


def _under_slurm(options: LaunchOptions, environment: Mapping[str, str]) -> Topology:
    place = slurm_place(environment)
    if place.n_tasks == 1:
        return _from_flags(options)
    if _by_flags(options):
        _one_for_each_node("srun", place.tasks_on_node)
        _agree("--n_nodes", options.n_nodes, f"srun started {place.n_nodes} nodes", place.n_nodes)
        return _from_flags(options)
    _agree("--n_nodes", options.n_nodes, f"srun started {place.n_nodes} nodes", place.n_nodes)
    _agree("--node_rank", options.node_rank, f"srun made this node {place.node_rank}", place.node_rank, least=0)
    if place.one_rank_each:
        started = f"srun started {place.tasks_on_node} tasks on this node"
        _agree("--n_gpus_per_node", options.n_gpus_per_node, started, place.tasks_on_node)
    n_ranks = 1 if place.one_rank_each else _ranks_of_node(options)
    return Topology(
        n_agents=place.n_tasks,
        agent_rank=place.task,
        node_rank=place.node_rank,
        n_ranks=n_ranks,
        first_local_rank=place.local_task if place.one_rank_each else 0,
        local_world_size=place.tasks_on_node if place.one_rank_each else n_ranks,
        master_address=options.master_address or place.master_address(),
        master_ports=(options.master_port,) if options.master_port else place.ports(),
        run_id=place.run_id,
        source="Slurm",
    )


def _agree(flag: str, value: int, started: str, found: int, least: int = 1) -> None:
    """Check a flag, where it is given, against what a launcher did."""
    if value >= least and value != found:
        raise UsageError(f"{flag} {value}, but {started}; leave {flag} out or start as many as it says")


def _one_for_each_node(launcher: str, local_size: int) -> None:
    if local_size > 1:
        raise UsageError(
            f"--node_rank names one process on each node, but {launcher} started {local_size} on this one; "
            "leave --node_rank out, or start one process on each node"
        )


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except (KeyError, ValueError):
        raise UsageError(
            f"{name}={environment.get(name, '(unset)')} in the environment: a number expected; start main.py with the "
            "launcher itself, or give --n_nodes, --node_rank and --master_address in a clean environment"
        ) from None


def _use_every_core() -> None:
    """Undo mpirun's binding to one core or socket, which all ranks and data loaders of the node would inherit."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, range(os.cpu_count() or 1))


def _ranks_of_node(options: LaunchOptions) -> int:
    return options.n_gpus_per_node or count_devices(options.device)


def count_devices(device: str) -> int:
    """GPUs of this machine, or one CPU rank where there are none or they are not wanted."""
    if device == "cpu":
        return 1
    if sys.platform == "linux" and not any(any(Path("/dev").glob(name)) for name in GPU_DEVICE_FILES):
        return 1
    import torch  # slow to import, and only needed where there may be GPUs and their number is not given

    return max(1, torch.cuda.device_count())
