"""One command on each node, with flags that say which nodes there are; or this machine alone."""

from __future__ import annotations

from collections.abc import Mapping

from launch.addresses import LOOPBACK
from launch.options import LaunchOptions
from launch.places.topology import Topology, ranks_of_node
from util.errors import UsageError

VARIABLES = ()
DEFAULT_MASTER_PORT = 29417
"""Where node 0 listens when the flags name several nodes and no port."""


def find(options: LaunchOptions, _environment: Mapping[str, str]) -> Topology:
    """The agent of this node. Raises UsageError where the flags do not say all that several nodes need."""
    n_nodes = options.n_nodes or 1
    if options.node_rank >= n_nodes:
        raise UsageError(f"--node_rank {options.node_rank} with --n_nodes {n_nodes}: node ranks count from 0")
    if n_nodes > 1 and options.node_rank < 0:
        raise UsageError(f"--n_nodes {n_nodes} needs --node_rank (0 to {n_nodes - 1}), or mpirun, srun or torchrun")
    if n_nodes > 1 and not options.master_address:
        raise UsageError(f"--n_nodes {n_nodes} needs --master_address: the address of node 0, the same on every node")
    n_ranks = ranks_of_node(options)
    address = options.master_address or LOOPBACK
    return Topology(
        n_agents=n_nodes,
        agent_rank=max(0, options.node_rank),
        node_rank=max(0, options.node_rank),
        n_ranks=n_ranks,
        local_world_size=n_ranks,
        master_address=address,
        master_ports=(options.master_port or (DEFAULT_MASTER_PORT if n_nodes > 1 else 0),),
        listen_address=address,
    )


def name_every_node(options: LaunchOptions) -> bool:
    """Whether the flags say all that several nodes need, so that nothing is to be agreed on."""
    return options.n_nodes > 1 and options.node_rank >= 0 and bool(options.master_address)
