"""Waiting for others at the start: any stop signal ends it, it is bounded, and it says what it goes by."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch.distributed as dist

from launch.addresses import LOOPBACK, listen
from launch.agents.meeting import meet, torchrun_store
from launch.options import LaunchOptions
from launch.places import find_place
from launch.places.topology import RankPlace
from launch.waiting import REMINDER_SECONDS, Waiting
from tests.patience import PATIENCE, wait_for
from tests.system.command import LAUNCHER_VARIABLES, ROOT, arguments, end
from util.errors import UsageError
from util.stop import STOP_SIGNALS

TINY: dict[str, Any] = {
    "config": "configs/smoke/tiny.txt", "device": "cpu", "n_gpus_per_node": 1, "n_train_iters": 4, "log_freq": 1
}  # fmt: skip
ENDLESS = {**TINY, "rendezvous_timeout": 10 * PATIENCE, "collective_timeout": 10 * PATIENCE}
SHORT = {**TINY, "rendezvous_timeout": 3 * REMINDER_SECONDS, "collective_timeout": 10 * PATIENCE}
TORCHRUN = {"LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": LOOPBACK}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
}  # fmt: skip
SLURM = {
    "SLURM_JOB_ID": "71", "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "localhost,gpu7", "SLURM_LOCALID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
}  # fmt: skip


def free_port() -> int:
    with listen(LOOPBACK, 0) as taken:
        return int(taken.getsockname()[1])


def start(workdir: Path, variables: Mapping[str, str], **options: Any) -> subprocess.Popen[str]:
    """main.py with what a launcher has set, or has left behind."""
    clean = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
    return subprocess.Popen(
        arguments(workdir, **options), cwd=ROOT, env={**clean, "OMP_NUM_THREADS": "1", **variables},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def read_until(process: subprocess.Popen[str], text: str) -> None:
    """Until the process has written a line with this text."""
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if text in line:
            return
    raise AssertionError(f"no '{text}' in\n{''.join(seen)}")


def by_flags(node_rank: int, port: int) -> dict[str, Any]:
    return {"n_nodes": 2, "node_rank": node_rank, "master_address": LOOPBACK, "master_port": port}


def hanging_mpi(folder: Path) -> dict[str, str]:
    """The environment of a process of mpirun whose MPI never gets to the others, and lets no other thread run."""
    folder.mkdir(parents=True)
    (folder / "mpi4py.py").write_text(
        "import ctypes, sys, types\nrc = types.SimpleNamespace()\n"
        "MPI = sys.modules['mpi4py.MPI'] = types.ModuleType('mpi4py.MPI')\n"
        "MPI.Init = lambda: ctypes.PyDLL(None).sleep(100_000)\n"
    )
    return {**OPEN_MPI, "PYTHONPATH": str(folder)}


def hanging_slurm(folder: Path) -> dict[str, str]:
    """The environment of a task whose first node has no address, on a cluster that does not answer."""
    folder.mkdir(parents=True)
    script = folder / "scontrol"
    script.write_text(f"#!/bin/sh\necho asked > {folder}/asked\nexec sleep 100000\n")
    script.chmod(0o755)
    nodes = {"SLURM_STEP_NODELIST": "no-such-node-[1-2]", "SLURM_NODEID": "1", "SLURM_PROCID": "1"}
    return {**SLURM, **nodes, "PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "waits_for",
    ["nodes that do not come", "node 0", "an answer of node 0", "MPI", "Slurm's first node", "torchrun's other ranks",
     "torchrun's store", "an answer of torchrun's store"],
)  # fmt: skip
def test_any_stop_signal_ends_any_waiting(waits_for: str, tmp_path: Path) -> None:
    waiting = []
    with socket.create_server((LOOPBACK, 0)) as silent:
        answers_not = silent.getsockname()[1]
        # Starting torch takes long, and tests/util/test_stop.py has all of them.
        for number in (signal.SIGTERM, signal.SIGHUP) if "torchrun" in waits_for else STOP_SIGNALS:
            port, folder = free_port(), tmp_path / f"mpi_{number.name}"
            options: dict[str, Any] = {}
            variables: dict[str, str] = {}
            if waits_for == "nodes that do not come":
                options = by_flags(0, port)
            elif waits_for == "node 0":
                options = by_flags(1, port)
            elif waits_for == "an answer of node 0":
                options = by_flags(1, answers_not)
            elif waits_for == "MPI":
                variables = hanging_mpi(folder)
            elif waits_for == "Slurm's first node":
                variables = {**SLURM, "SLURM_PROCID": "1", "SLURM_NODEID": "1"}
            else:
                variables = {
                    "torchrun's other ranks": {**TORCHRUN, "RANK": "0", "MASTER_PORT": str(port)},
                    "torchrun's store": {**TORCHRUN, "RANK": "1", "MASTER_PORT": str(port)},
                    "an answer of torchrun's store": {**TORCHRUN, "RANK": "1", "MASTER_PORT": str(answers_not)},
                }[waits_for]
            waiting.append((number, start(tmp_path / "run", variables, **ENDLESS, **options)))
        for number, process in waiting:
            read_until(process, " waits for ")
            process.send_signal(number)
            end(process, 75)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_stop_signal_ends_what_comes_before_the_first_reminder(tmp_path: Path) -> None:
    """While Slurm is asked for an address, and between the store and the process group."""
    variables = hanging_slurm(tmp_path / "slurm")
    slurm = start(tmp_path / "run", variables, **ENDLESS)
    port = free_port()
    rank = start(tmp_path / "run", {**TORCHRUN, "RANK": "0", "MASTER_PORT": str(port)}, **ENDLESS)
    wait_for((tmp_path / "slurm" / "asked").exists, "the question to Slurm")
    asked = psutil.Process(slurm.pid).children()
    slurm.send_signal(signal.SIGUSR1)
    end(slurm, 75)
    for child in asked:
        child.kill()
    # This process takes the place of rank 1, as far as the store.
    store = dist.TCPStore(LOOPBACK, port, timeout=timedelta(seconds=PATIENCE), wait_for_workers=False)
    meet(dist.PrefixStore("scorefleet", store), RankPlace(1, 0, 2, 1), Waiting(PATIENCE))
    rank.send_signal(signal.SIGTERM)
    end(rank, 75)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stop_signal_to_one_node_is_told_to_those_that_are_there(stopped: int, tmp_path: Path) -> None:
    port = free_port()
    nodes = [
        start(tmp_path / "run", {}, **{**ENDLESS, **by_flags(node_rank, port), "n_nodes": 3}) for node_rank in (0, 1)
    ]
    read_until(nodes[0], "waits for number 2 of 3 nodes")
    nodes[stopped].send_signal(signal.SIGHUP)
    for node in nodes:
        end(node, 75)
    assert not (tmp_path / "run").exists()


def unset_by(output: str) -> list[str]:
    """The variables that the last line of an output says to unset."""
    found = re.search(r"`unset ([A-Z_ ]+)`", output.strip().splitlines()[-1])
    assert found, output
    return found[1].split()


@pytest.mark.slow
def test_variables_of_a_launcher_that_has_ended(tmp_path: Path) -> None:
    """Bounded, with a reminder that names them, and a last line that does, too."""
    port, tries = free_port(), {}
    for rank in ("0", "1"):
        tries[f"torchrun {rank}"] = {**TORCHRUN, "RANK": rank, "MASTER_PORT": str(port + int(rank))}
        tries[f"srun {rank}"] = {**SLURM, "SLURM_PROCID": rank, "SLURM_NODEID": rank, "SLURM_JOB_ID": rank}
    tries["mpirun"] = hanging_mpi(tmp_path / "mpi")
    started = {name: start(tmp_path / "run", variables, **SHORT) for name, variables in tries.items()}
    with ThreadPoolExecutor(len(started)) as pool:
        output = dict(zip(started, pool.map(lambda process: end(process, 1), started.values()), strict=True))
    for name, text in output.items():
        *reminders, last = text.strip().splitlines()
        assert "(--rendezvous_timeout)" in last, text
        assert all(" waits for " in line for line in reminders), text
        assert reminders, text
        for line in (*reminders, last):
            assert f"if no {name.split()[0]} has just set these" in line
            for variable in unset_by(text):
                assert f"{variable}={tries[name][variable]}" in line
    assert not (tmp_path / "run").exists()
    # And the advice is right.
    for name in ("torchrun 1", "srun 1", "mpirun"):
        left = {variable: value for variable, value in tries[name].items() if variable not in unset_by(output[name])}
        end(start(tmp_path / name, left, **SHORT), 0)


@pytest.mark.parametrize(
    "change", [{"MASTER_ADDR": ""}, {"MASTER_PORT": ""}, {"MASTER_PORT": "nobody"}, {"MASTER_PORT": "99999"}]
)
def test_torchrun_variables_that_name_no_store(change: dict[str, str]) -> None:
    environment = {**TORCHRUN, "RANK": "1", "MASTER_PORT": "29500", **change}
    place = find_place(LaunchOptions(device="cpu"), environment)
    assert isinstance(place, RankPlace)
    with pytest.raises(UsageError, match=next(iter(change))) as refused:
        torchrun_store(place, Waiting(PATIENCE, place.went_by), PATIENCE, environment)
    assert {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= set(unset_by(str(refused.value)))


def test_a_first_node_that_nobody_knows(tmp_path: Path) -> None:
    variables = hanging_slurm(tmp_path / "slurm")
    output = end(start(tmp_path / "run", variables, **{**ENDLESS, "rendezvous_timeout": 0.5}), 2)
    assert "no-such-node-1 has no address" in output
    assert unset_by(output) == ["SLURM_STEP_ID", "SLURM_PROCID"]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_what_torchrun_left_beside_its_ranks_is_not_for_ours(tmp_path: Path) -> None:
    left = {"TORCHELASTIC_RUN_ID": "none", "GROUP_WORLD_SIZE": "4", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    end(start(tmp_path / "run", left, **{**TINY, "n_nodes": 1}), 0)
