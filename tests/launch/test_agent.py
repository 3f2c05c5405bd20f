"""One machine's agent: what becomes of a run that is stopped, killed or frozen at any time."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from launch.agents.restart import OF_RESTART, of_restart, starters, starters_of_all
from tests.configuration import configured
from tests.patience import wait_for
from tests.system.command import (
    NO_TIME_OUTS,
    SLOW_START,
    arguments,
    end,
    ranks_of,
    snapshot,
    start,
    wait_for_end,
    wait_until,
)
from util.run_file import read_run_file, update_run_file
from util.run_options import RunOptions

TINY: dict[str, Any] = {
    "config": "configs/smoke/tiny.txt",
    "device": "cpu",
    "n_gpus_per_node": 2,
    "n_train_iters": 100_000,
    "snapshot_freq": 5,
    "save_freq": 0,
    "sample_freq": 1_000_000,
    "log_freq": 1,
    "seed": 5,
}


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 1.0])
@pytest.mark.parametrize(
    ("number", "to_rank"), [(signal.SIGTERM, False), (signal.SIGUSR1, True), (signal.SIGHUP, False)]
)
def test_stop_signal_during_start_up(number: signal.Signals, to_rank: bool, delay: float, tmp_path: Path) -> None:
    process = start(tmp_path, **TINY, **NO_TIME_OUTS)
    wait_until(lambda: len(ranks_of(process)) == 2, process)
    time.sleep(delay)
    ranks = ranks_of(process)
    (ranks[1] if to_rank else process).send_signal(number)
    end(process, 75)
    wait_for_end(ranks.values())
    # A run that has not begun leaves nothing but its logs.
    assert os.listdir(tmp_path) == ["logs"] or read_run_file(tmp_path)["state"] == "preempted"


@pytest.mark.slow
def test_a_closed_terminal_is_a_stop_signal(tmp_path: Path) -> None:
    process, terminal = os.forkpty()
    if process == 0:
        os.execv(sys.executable, arguments(tmp_path, **TINY, **NO_TIME_OUTS))
    wait_for(lambda: read_from(terminal) and read_run_file(tmp_path).get("step", 0) >= 3, "a few steps")
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 75
    status = read_run_file(tmp_path)
    assert (status["state"], status["exit_reason"]) == ("preempted", "SIGHUP")
    assert snapshot(tmp_path)["step"] == status["step"]


def read_from(terminal: int) -> bool:
    """Take what a terminal shows, so that nobody waits for it; true."""
    while select.select([terminal], [], [], 0)[0]:
        os.read(terminal, 1 << 16)
    return True


@pytest.mark.slow
def test_nohup_keeps_a_run_from_noticing(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = start(tmp_path, **TINY, **NO_TIME_OUTS)
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_until(lambda: read_run_file(tmp_path).get("step", 0) >= 3, process)
    for one in (process, *ranks_of(process).values()):
        one.send_signal(signal.SIGHUP)
    reached = read_run_file(tmp_path)["step"]
    wait_until(lambda: read_run_file(tmp_path)["step"] >= reached + 20, process)
    process.send_signal(signal.SIGTERM)
    end(process, 75)
    assert read_run_file(tmp_path)["exit_reason"] == "SIGTERM"


@pytest.mark.slow
def test_a_failed_run_starts_again_from_its_newest_snapshot(tmp_path: Path) -> None:
    process = start(tmp_path, **{**TINY, "n_train_iters": 40}, max_restarts=2, overwrite=True)
    wait_until(lambda: read_run_file(tmp_path).get("step", 0) >= 8, process)
    ranks_of(process)[1].kill()
    output = end(process)
    assert output.count("was killed by SIGKILL") == 1
    assert "restart 1 of 2" in output
    assert "continuing from" in output
    assert snapshot(tmp_path)["step"] == 40


@pytest.mark.slow
def test_a_stopped_agent_is_killed_by_its_ranks(tmp_path: Path) -> None:
    process = start(tmp_path, **TINY, rank_timeout=SLOW_START)
    wait_until(lambda: read_run_file(tmp_path).get("step", 0) >= 3, process)
    ranks = list(ranks_of(process).values())
    process.send_signal(signal.SIGSTOP)
    end(process, -signal.SIGKILL)
    wait_for_end(ranks)
    # The rank that notices first ends the others with the agent.
    said = "".join(path.read_text() for path in (tmp_path / "logs").glob("rank_*.log"))
    assert f"gave no sign of life for {SLOW_START} s" in said


@pytest.mark.slow
def test_a_pause_of_the_whole_machine_is_no_failure(tmp_path: Path) -> None:
    process = start(tmp_path, **TINY, rank_timeout=SLOW_START, node_timeout=SLOW_START)
    wait_until(lambda: read_run_file(tmp_path).get("step", 0) >= 3, process)
    everything = [psutil.Process(process.pid), *ranks_of(process).values()]
    for one in everything:
        one.send_signal(signal.SIGSTOP)
    time.sleep(SLOW_START + 5)
    for one in everything:
        one.send_signal(signal.SIGCONT)
    before = read_run_file(tmp_path)["step"]
    wait_until(lambda: read_run_file(tmp_path)["step"] >= before + 5, process)
    process.send_signal(signal.SIGTERM)
    end(process, 75)
    assert snapshot(tmp_path)["step"] > before


@pytest.mark.parametrize("name", ["SCOREFLEET_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
def test_restarts_never_delete_nor_go_back(name: str, tmp_path: Path) -> None:
    first = {"SCOREFLEET_STARTER": "agent", "SLURM_JOB_ID": "7", name: "0"}
    again = {**first, name: "2"}
    elsewhere = {**first, "SCOREFLEET_STARTER": "agent of another node", "SLURM_JOB_ID": "8"}
    now = starters_of_all([starters(again)])
    update_run_file(tmp_path, step=5, starters=starters_of_all([starters(elsewhere), starters(again)]))
    assert of_restart(tmp_path, now, first) == {}
    assert of_restart(tmp_path, now, again) == OF_RESTART
    # No start before has come to its first step: there is no run yet, or another, which is still to be overwritten.
    assert of_restart(tmp_path / "absent", now, again) == {}
    update_run_file(tmp_path / "other", step=5, starters={kind: ["other"] for kind in now})
    assert of_restart(tmp_path / "other", now, again) == {}
    # A run from when run.json did not say who began it.
    update_run_file(tmp_path / "older", step=5)
    assert of_restart(tmp_path / "older", now, again) == OF_RESTART
    again = configured(overwrite=True, checkpoint="checkpoint_10.pth").with_values(**OF_RESTART)
    assert (again[RunOptions].overwrite, again[RunOptions].checkpoint) == (False, "")
