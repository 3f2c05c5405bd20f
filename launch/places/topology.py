"""What a process learns of its place, and what several ways to be started have in common."""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from launch.addresses import LOOPBACK
from launch.options import LaunchOptions
from util.errors import UsageError

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
        master_address: where the others find agent 0.
        master_ports: the ports to try there, in this order.
        listen_address: where agent 0 listens; empty for every address of its node.
        run_id: known to the agents of this run alone; empty where they have no common source of it.
        listener: the socket of agent 0, where it had to be opened before the others could know its port.
        impatient: whether the launcher kills its processes soon after it has told them to stop.
        went_by: what in the environment said all this, for messages while the others do not come; may be empty.
    """

    n_agents: int = 1
    agent_rank: int = 0
    node_rank: int = 0
    n_ranks: int = 1
    first_local_rank: int = 0
    local_world_size: int = 1
    master_address: str = LOOPBACK
    master_ports: tuple[int, ...] = (0,)
    listen_address: str = LOOPBACK
    run_id: str = ""
    listener: socket.socket | None = field(default=None, compare=False)
    impatient: bool = False
    went_by: str = field(default="", compare=False)

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
    """A rank's place, as its launcher (our agent or torchrun) wrote it into the environment.

    Attributes:
        went_by: as in ``Topology``.
    """

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    went_by: str = field(default="", compare=False)


def agree(flag: str, value: int, started: str, found: int, least: int = 1) -> None:
    """Raise UsageError where a flag is given (is at least ``least``) and a launcher did something else."""
    if value >= least and value != found:
        raise UsageError(f"{flag} {value}, but {started}; leave {flag} out or start as many as it says")


def one_for_each_node(launcher: str, local_size: int) -> None:
    """Raise UsageError where flags that name nodes meet several processes on this one."""
    if local_size > 1:
        raise UsageError(
            f"--node_rank names one process on each node, but {launcher} started {local_size} on this one; "
            "leave --node_rank out, or start one process on each node"
        )


def number(environment: Mapping[str, str], name: str, advice: str) -> int:
    """A variable that is a number; UsageError with the advice where it is none."""
    try:
        return int(environment[name])
    except (KeyError, ValueError):
        given = environment.get(name) or "(unset)"
        raise UsageError(f"{name}={given} in the environment: a number expected; {advice}") from None


def ranks_of_node(options: LaunchOptions) -> int:
    """How many ranks an agent starts that is the only one of its node."""
    return options.n_gpus_per_node or options.ranks_per_gpu * count_devices(options.device)


def count_devices(device: str) -> int:
    """GPUs of this machine, or one CPU rank where there are none or they are not wanted."""
    if device == "cpu":
        return 1
    if sys.platform == "linux" and not any(any(Path("/dev").glob(name)) for name in GPU_DEVICE_FILES):
        return 1
    import torch  # slow to import, and only needed where there may be GPUs and their number is not given

    return max(1, torch.cuda.device_count())
