"""Where this process is: an agent that starts the ranks of its node, or a rank already."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from util.errors import UsageError
from util.options import LaunchOptions


@dataclass(frozen=True)
class Topology:
    """Nodes and ranks of the run, as one node's agent sees them."""

    n_nodes: int
    node_rank: int
    ranks_per_node: int
    master_address: str
    master_port: int

    @property
    def world_size(self) -> int:
        return self.n_nodes * self.ranks_per_node


@dataclass(frozen=True)
class RankPlace:
    """A rank's place, as its launcher (our agent or torchrun) wrote it into the environment."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int


def rank_place(environment: Mapping[str, str] = os.environ) -> RankPlace | None:
    """The place of this process if a launcher made it a rank, else None.

    Raises:
        UsageError: the environment names a rank but is incomplete or contradicts itself.
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
    return RankPlace(rank, local_rank, world_size, local_world_size)


def topology_from_flags(options: LaunchOptions) -> Topology:
    """The topology that ``--n_nodes``, ``--node_rank`` and the like describe.

    Raises:
        UsageError: values that contradict each other.
    """
    if options.node_rank >= options.n_nodes:
        raise UsageError(f"--node_rank {options.node_rank} with --n_nodes {options.n_nodes}: ranks count from 0")
    if options.n_nodes > 1 and options.master_port == 0:
        raise UsageError("--n_nodes > 1 needs --master_port: the same free port of node 0 on every node")
    return Topology(
        options.n_nodes,
        options.node_rank,
        options.n_gpus_per_node or count_devices(options.device),
        options.master_address,
        options.master_port,
    )


def count_devices(device: str) -> int:
    """GPUs of this machine, or one CPU rank where there are none or they are not wanted."""
    if device == "cpu":
        return 1
    import torch  # slow to import, and only needed where the number of ranks is not given

    return max(1, torch.cuda.device_count())
