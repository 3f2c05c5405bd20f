"""A process that torchrun, or our agent, has made a rank."""

from __future__ import annotations

from collections.abc import Mapping

from launch.options import LaunchOptions
from launch.places.topology import RankPlace, agree, number
from launch.waiting import went_by
from util.errors import UsageError

VARIABLES = ("RANK", "WORLD_SIZE")
ADDRESS = ("MASTER_ADDR", "MASTER_PORT")
OTHERS = ("GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_NAME", "ROLE_RANK", "ROLE_WORLD_SIZE")
PREFIX = "TORCHELASTIC_"
"""What torchrun sets beside the variables of a rank; our agents set none of it."""


def find(options: LaunchOptions, environment: Mapping[str, str]) -> RankPlace:
    """The place of the rank. Raises UsageError where its environment contradicts itself or the flags."""
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
        n_nodes = number(environment, "GROUP_WORLD_SIZE", "start main.py with torchrun itself, or unset RANK")
        agree("--n_nodes", options.n_nodes, f"torchrun started {n_nodes} nodes", n_nodes)
        started = f"torchrun started {local_world_size} processes on each node"
        agree("--n_gpus_per_node", options.n_gpus_per_node, started, local_world_size)
    origin = went_by("torchrun", environment, (*names, *ADDRESS))
    return RankPlace(rank, local_rank, world_size, local_world_size, origin)


def without_torchrun(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for a process that must not take itself for one of torchrun's."""
    return {name: value for name, value in environment.items() if name not in OTHERS and not name.startswith(PREFIX)}
