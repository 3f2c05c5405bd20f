"""Where a process is, told from flags and from what torchrun, Open MPI and Slurm leave in the environment."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from launch.options import LaunchOptions
from launch.places import find_place
from launch.places.slurm import expand_nodes, expand_tasks, slurm_place
from launch.places.topology import RankPlace, Topology
from util.errors import UsageError

OPTIONS = LaunchOptions(device="cpu")
SLURM = {
    "SLURM_JOB_ID": "71",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "localhost,gpu[02-03]",
    "SLURM_STEP_TASKS_PER_NODE": "1(x3)",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
}
TORCHRUN = {
    "RANK": "5",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "8",
    "LOCAL_WORLD_SIZE": "4",
    "GROUP_WORLD_SIZE": "2",
    "TORCHELASTIC_RUN_ID": "none",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
}


def found_topology(options: LaunchOptions, environment: dict[str, str]) -> Topology:
    place = find_place(options, environment)
    assert isinstance(place, Topology)
    return place


def test_one_machine() -> None:
    assert found_topology(OPTIONS, {}) == Topology()
    assert found_topology(replace(OPTIONS, n_gpus_per_node=3), {}) == Topology(n_ranks=3, local_world_size=3)


def test_flags() -> None:
    options = replace(OPTIONS, n_nodes=2, node_rank=1, master_address="10.0.0.1", n_gpus_per_node=4)
    found = found_topology(options, {})
    assert (found.n_agents, found.agent_rank, found.node_rank) == (2, 1, 1)
    assert (found.n_ranks, found.first_local_rank, found.local_world_size) == (4, 0, 4)
    assert (found.master_address, found.master_ports) == ("10.0.0.1", (29417,))
    assert not found.one_rank_each


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"n_nodes": 2}, "--node_rank"),
        ({"n_nodes": 2, "node_rank": 2}, "--node_rank 2"),
        ({"node_rank": 1}, "--node_rank 1"),
        ({"n_nodes": 2, "node_rank": 1}, "--master_address"),
    ],
)
def test_flags_that_do_not_fit(flags: dict[str, int], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        found_topology(replace(OPTIONS, **flags), {})


def test_torchrun_made_this_process_a_rank_even_inside_srun() -> None:
    place = find_place(OPTIONS, {**SLURM, **TORCHRUN})
    assert isinstance(place, RankPlace)
    assert (place.rank, place.local_rank, place.world_size, place.local_world_size) == (5, 1, 8, 4)
    with pytest.raises(UsageError, match="--n_nodes 3, but torchrun started 2 nodes"):
        find_place(replace(OPTIONS, n_nodes=3), TORCHRUN)
    with pytest.raises(UsageError, match="--n_gpus_per_node 8, but torchrun started 4"):
        find_place(replace(OPTIONS, n_gpus_per_node=8), TORCHRUN)
    with pytest.raises(UsageError, match=r"LOCAL_RANK=\(unset\)"):
        find_place(OPTIONS, {"RANK": "0", "WORLD_SIZE": "2"})


def test_flags_inside_mpirun_need_no_mpi() -> None:
    options = replace(OPTIONS, n_nodes=2, node_rank=1, master_address="10.0.0.1")
    assert found_topology(options, OPEN_MPI) == found_topology(options, {})
    with pytest.raises(UsageError, match="--n_nodes 3, but mpirun started 2 nodes"):
        found_topology(replace(options, n_nodes=3), OPEN_MPI)
    with pytest.raises(UsageError, match="mpirun started 8 on this one"):
        found_topology(options, {**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "8", "OMPI_COMM_WORLD_SIZE": "16"})


def test_mpirun_without_mpi4py_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "mpi4py.py").write_text("raise ImportError('no mpi4py here')\n")
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, root / "main.py", "--workdir", tmp_path / "run", "--device", "cpu"],
        env={**os.environ, **OPEN_MPI, "PYTHONPATH": str(tmp_path)}, cwd=root, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "no mpi4py here" in done.stderr
    assert "pip install mpi4py, or give --n_nodes, --node_rank and --master_address" in done.stderr


def test_slurm_one_task_for_each_node() -> None:
    found = found_topology(replace(OPTIONS, n_gpus_per_node=4), SLURM)
    assert (found.n_agents, found.agent_rank, found.node_rank, found.n_ranks) == (3, 1, 1, 4)
    assert (found.local_world_size, found.master_address) == (4, "localhost")
    assert found.run_id == "slurm 71.0.0"


def test_slurm_one_task_for_each_rank() -> None:
    tasks = {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "8(x2),4", "SLURM_PROCID": "11", "SLURM_LOCALID": "3"}
    found = found_topology(OPTIONS, tasks)
    assert (found.n_agents, found.agent_rank, found.node_rank) == (20, 11, 1)
    assert (found.n_ranks, found.first_local_rank, found.local_world_size) == (1, 3, 8)
    assert found.one_rank_each
    with pytest.raises(UsageError, match="--n_gpus_per_node 4, but srun started 8 tasks on this node"):
        found_topology(replace(OPTIONS, n_gpus_per_node=4), tasks)


def test_slurm_against_flags() -> None:
    with pytest.raises(UsageError, match="--n_nodes 2, but srun started 3 nodes"):
        found_topology(replace(OPTIONS, n_nodes=2), SLURM)
    with pytest.raises(UsageError, match="--node_rank 0, but srun made this node 1"):
        found_topology(replace(OPTIONS, node_rank=0), SLURM)


def test_slurm_batch_script_and_single_task_are_one_machine() -> None:
    batch = {name: value for name, value in SLURM.items() if name != "SLURM_STEP_ID"}
    assert found_topology(OPTIONS, batch) == Topology()
    single = {**SLURM, "SLURM_STEP_NODELIST": "a", "SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_NODEID": "0"}
    assert found_topology(OPTIONS, {**single, "SLURM_PROCID": "0"}) == Topology()


def test_slurm_ports_are_shared_by_tasks_and_not_by_restarts() -> None:
    first = slurm_place(SLURM)
    assert slurm_place({**SLURM, "SLURM_PROCID": "2", "SLURM_NODEID": "2"}).ports() == first.ports()
    assert not set(slurm_place({**SLURM, "SLURM_RESTART_COUNT": "1"}).ports()) & set(first.ports())
    assert all(20_000 <= port < 30_000 for port in first.ports())
    assert len(set(first.ports())) == 8


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a", ["a"]),
        ("a,b-1", ["a", "b-1"]),
        ("n[1-3,5]", ["n1", "n2", "n3", "n5"]),
        ("n[08-11].cluster,x", ["n08.cluster", "n09.cluster", "n10.cluster", "n11.cluster", "x"]),
        ("r[1-2]n[3,4]", ["r1n3", "r1n4", "r2n3", "r2n4"]),
    ],
)
def test_node_lists(text: str, names: list[str]) -> None:
    assert expand_nodes(text) == names


def test_task_lists() -> None:
    assert expand_tasks("2(x3),1") == [2, 2, 2, 1]


@pytest.mark.parametrize("text", ["", "n[a-b]", "n[1-"])
def test_node_lists_of_another_form(text: str) -> None:
    with pytest.raises(UsageError, match="node list"):
        expand_nodes(text)


@pytest.mark.parametrize(
    "change",
    [{"SLURM_NODEID": "x"}, {"SLURM_STEP_TASKS_PER_NODE": "two"}, {"SLURM_NODEID": "7"}, {"SLURM_PROCID": ""}],
)
def test_slurm_environment_that_contradicts_itself(change: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="srun"):
        slurm_place({**SLURM, **change})
