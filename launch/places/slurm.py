"""A task that srun started: its environment tells it of itself and the others."""

from __future__ import annotations

import hashlib
import re
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from launch.options import LaunchOptions
from launch.places import flags
from launch.places.topology import Topology, agree, number, one_for_each_node, ranks_of_node
from launch.waiting import went_by
from util.errors import UsageError

# A batch script has SLURM_PROCID too, but only srun starts it on every node.
VARIABLES = ("SLURM_STEP_ID", "SLURM_PROCID")
FIRST_PORT = 20_000
N_PORTS = 10_000
"""Below the range from which systems give ports to outgoing connections."""
N_CANDIDATES = 8
SCONTROL_SECONDS = 20.0


@dataclass(frozen=True)
class SlurmPlace:
    """One task of a job step.

    Attributes:
        task, n_tasks: of the step.
        local_task, tasks_on_node: of this node.
        one_rank_each: whether some node has several tasks, so that each of them is one rank.
        node_rank, n_nodes: of the step.
        first_node: name of the node of task 0.
        run_id: job, step and how often the job was restarted.
    """

    task: int
    n_tasks: int
    local_task: int
    tasks_on_node: int
    one_rank_each: bool
    node_rank: int
    n_nodes: int
    first_node: str
    run_id: str

    def ports(self) -> tuple[int, ...]:
        """Where task 0 may listen: the same for all tasks, others after each restart of the job."""
        digests = (hashlib.sha256(f"{self.run_id} {attempt}".encode()).digest() for attempt in range(N_CANDIDATES))
        return tuple(FIRST_PORT + int.from_bytes(digest[:4], "big") % N_PORTS for digest in digests)

    def master_address(self, timeout_seconds: float) -> str:
        """The address of the first node; by Slurm's own table where its name cannot be looked up.

        Args:
            timeout_seconds: how long Slurm may take to answer, at most ``SCONTROL_SECONDS``.

        Raises:
            UsageError: neither knows it.
        """
        try:
            socket.getaddrinfo(self.first_node, None, type=socket.SOCK_STREAM)
            return self.first_node
        except OSError:
            return node_address(self.first_node, min(timeout_seconds, SCONTROL_SECONDS))


def find(options: LaunchOptions, environment: Mapping[str, str]) -> Topology:
    """The agent of this task.

    Raises:
        UsageError: the flags say something else, or the environment is not of the known form.
    """
    place = slurm_place(environment)
    if place.n_tasks == 1:
        return flags.find(options, environment)
    agree("--n_nodes", options.n_nodes, f"srun started {place.n_nodes} nodes", place.n_nodes)
    if flags.name_every_node(options):
        one_for_each_node("srun", place.tasks_on_node)
        return flags.find(options, environment)
    agree("--node_rank", options.node_rank, f"srun made this node {place.node_rank}", place.node_rank, least=0)
    if place.one_rank_each:
        started = f"srun started {place.tasks_on_node} tasks on this node"
        agree("--n_gpus_per_node", options.n_gpus_per_node, started, place.tasks_on_node)
    n_ranks = 1 if place.one_rank_each else ranks_of_node(options)
    origin = went_by("srun", environment, VARIABLES)
    try:
        master_address = options.master_address or place.master_address(options.rendezvous_timeout)
    except UsageError as error:
        raise UsageError(f"{error}; {origin}") from None
    return Topology(
        n_agents=place.n_tasks,
        agent_rank=place.task,
        node_rank=place.node_rank,
        n_ranks=n_ranks,
        first_local_rank=place.local_task if place.one_rank_each else 0,
        local_world_size=place.tasks_on_node if place.one_rank_each else n_ranks,
        master_address=master_address,
        master_ports=(options.master_port,) if options.master_port else place.ports(),
        listen_address="",  # the master's name may stand for another address here than elsewhere
        run_id=place.run_id,
        went_by=origin,
    )


def slurm_place(environment: Mapping[str, str]) -> SlurmPlace:
    """This task's place.

    Raises:
        UsageError: a variable is missing or is not of the known form.
    """
    task, local_task, node_rank = (
        number(environment, f"SLURM_{name}", "run main.py by srun") for name in ("PROCID", "LOCALID", "NODEID")
    )
    nodes = expand_nodes(_text(environment, "SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"))
    tasks = expand_tasks(_text(environment, "SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"))
    if len(tasks) != len(nodes) or not 0 <= node_rank < len(nodes):
        raise UsageError(f"Slurm's environment names {len(nodes)} nodes and tasks on {len(tasks)}; run main.py by srun")
    identity = [environment.get(f"SLURM_{name}", "0") for name in ("JOB_ID", "STEP_ID", "RESTART_COUNT")]
    return SlurmPlace(
        task=task,
        n_tasks=sum(tasks),
        local_task=local_task,
        tasks_on_node=tasks[node_rank],
        one_rank_each=max(tasks) > 1,
        node_rank=node_rank,
        n_nodes=len(nodes),
        first_node=nodes[0],
        run_id="slurm " + ".".join(identity),
    )


def expand_nodes(text: str) -> list[str]:
    """The names of a node list such as ``gpu[001-003,7],login1``.

    Raises:
        UsageError: the list is not of the known form.
    """
    names: list[str] = []
    for part in re.findall(r"(?:[^,\[\]]|\[[^\]]*\])+", text):
        names += _expand_brackets(part, text)
    if not names or text.count("[") != text.count("]"):
        raise UsageError(f"node list '{text}' is empty or cut short; run main.py by srun")
    return names


def _expand_brackets(part: str, text: str) -> list[str]:
    before, bracket, rest = part.partition("[")
    if not bracket:
        return [part]
    inside, _, after = rest.partition("]")
    names = []
    for item in inside.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", item.strip())
        if match is None:
            raise UsageError(f"node list '{text}': '{item}' is not a number or a range; run main.py by srun")
        first, last = match[1], match[2] or match[1]
        for count in range(int(first), int(last) + 1):
            names += [f"{before}{count:0{len(first)}d}{tail}" for tail in _expand_brackets(after, text)]
    return names


def expand_tasks(text: str) -> list[int]:
    """Tasks of each node, from a form such as ``2(x3),1``.

    Raises:
        UsageError: the list is not of the known form.
    """
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match is None:
            raise UsageError(
                f"tasks of the nodes '{text}': '{part}' is not of the form 2 or 2(x3); run main.py by srun"
            )
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def node_address(name: str, timeout_seconds: float) -> str:
    """What Slurm itself reaches a node by.

    Raises:
        UsageError: Slurm does not answer or does not know the node.
    """
    advice = "give --master_address"
    try:
        shown = subprocess.run(
            ["scontrol", "show", "node", "--oneliner", name],
            capture_output=True, text=True, timeout=timeout_seconds, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        raise UsageError(
            f"node {name} has no address by name, and scontrol does not tell it ({error}); {advice}"
        ) from None
    match = re.search(r"\bNodeAddr=(\S+)", shown)
    if match is None:
        raise UsageError(f"node {name} has no address by name, and none in scontrol show node; {advice}")
    return match[1]


def _text(environment: Mapping[str, str], *names: str) -> str:
    for name in names:
        if environment.get(name):
            return environment[name]
    raise UsageError(f"{names[0]} is not in the environment of this Slurm step; run main.py by srun")
