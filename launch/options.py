"""Options of processes, devices, and how long they wait for each other."""

from __future__ import annotations

from dataclasses import dataclass

from util.option import PLACE, option


@dataclass(frozen=True)
class LaunchOptions:
    """Processes and devices."""

    device: str = option("auto", "auto uses GPUs where there are any", choices=("auto", "cpu", "cuda"), effect=PLACE)
    n_gpus_per_node: int = option(
        0, "ranks on each node; 0 is one for each GPU, or a single CPU rank", minimum=0, effect=PLACE
    )
    ranks_per_gpu: int = option(
        1, "ranks that share each GPU, over gloo and not NCCL: to try many ranks on one GPU, not to be fast", minimum=1,
        effect=PLACE,
    )  # fmt: skip
    deterministic: bool = option(
        False, "only GPU algorithms that give the same bits each time; slower, and refused where there is none",
        effect=PLACE,
    )  # fmt: skip
    cudnn_benchmark: bool = option(
        False, "let cuDNN time its algorithms and take the fastest, another one perhaps after a resume (not with "
        "deterministic)", effect=PLACE,
    )  # fmt: skip
    n_nodes: int = option(
        0, "number of nodes; 0 is what mpirun, srun or torchrun started, else one", minimum=0, effect=PLACE, once=True
    )
    node_rank: int = option(-1, "index of this node, from 0; -1 asks the launcher", minimum=-1, effect=PLACE, once=True)
    master_address: str = option(
        "", "address of node 0 that the others can reach; default: agreed on under mpirun and srun", effect=PLACE,
        once=True,
    )  # fmt: skip
    master_port: int = option(
        0, "port of node 0 for the agents of the nodes; 0 is agreed on, or 29417 with --node_rank", minimum=0,
        maximum=65535, effect=PLACE, once=True,
    )  # fmt: skip
    rendezvous_timeout: float = option(
        300.0, "seconds that nodes wait for each other at the start", above=0.0, effect=PLACE
    )
    node_timeout: float = option(
        30.0, "seconds without a sign of life from a node until the run ends on every node", minimum=2.0,
        effect=PLACE,
    )  # fmt: skip
    rank_timeout: float = option(
        120.0, "seconds without a sign of life until a stopped rank, or the agent that started it, is killed",
        minimum=3.0, effect=PLACE,
    )  # fmt: skip
    max_restarts: int = option(
        0, "times that a failed run starts again from its newest snapshot, on all nodes together", minimum=0,
        effect=PLACE,
    )  # fmt: skip
    collective_timeout: float = option(
        1800.0, "seconds until a collective that does not complete is an error", above=0.0, effect=PLACE
    )
    grace_seconds: float = option(
        120.0, "seconds that ranks may take from a stop signal to their snapshot and exit", above=0.0,
        effect=PLACE,
    )  # fmt: skip
