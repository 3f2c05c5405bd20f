"""A second command that would do the same thing to the same folder is refused; what it is told, and what it leaves."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.system.command import NO_TIME_OUTS, end, kill_all, ranks_of, run, start, wait_until
from tests.system.folders import contents
from util.run_file import read_run_file

TINY: dict[str, Any] = {
    "config": "configs/smoke/tiny.txt", "device": "cpu", "log_freq": 1, "save_freq": 0, "snapshot_freq": 1,
    "sample_freq": 1_000_000, "eval_n_samples": 4,
}  # fmt: skip
ENDLESS = {**TINY, "n_train_iters": 100_000, "total_batch_size": 16}
LOSS: dict[str, Any] = {**TINY, "mode": "eval", "eval_loss": True, "testing_batch_size": 1, "eval_n_items": 360}


def is_refused(workdir: Path, pid: int, **options: Any) -> None:
    """At once, in a line that names the process."""
    lines = run(workdir, expect=2, **options, **NO_TIME_OUTS).splitlines()
    (line,) = (line for line in lines if line.startswith("error: "))
    assert re.search(rf"in use by process {pid} on \S+ \(started \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\)", line), line


@pytest.mark.slow
def test_a_second_run_is_refused(tmp_path: Path) -> None:
    """Whatever it wants, with any number of ranks; the first goes on, and a start after it is not held up."""
    workdir = tmp_path / "run"
    process = start(workdir, **ENDLESS, n_gpus_per_node=2)
    wait_until(lambda: (workdir / "checkpoints" / "checkpoint.pth").exists(), process)
    first = ranks_of(process)[0].pid
    is_refused(workdir, first, **ENDLESS)
    is_refused(workdir, first, **ENDLESS, overwrite=True, n_gpus_per_node=2)
    is_refused(workdir, first, mode="continue", learning_rate=5)
    reached = read_run_file(workdir)["step"]
    wait_until(lambda: read_run_file(workdir)["step"] > reached, process)
    process.send_signal(signal.SIGTERM)
    end(process, 75)
    steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))
    assert len(read_run_file(workdir)["starts"]) == 1
    assert not list((workdir / "logs").glob("*.lock"))
    process = start(workdir, **ENDLESS, **NO_TIME_OUTS)
    wait_until(lambda: read_run_file(workdir)["step"] > steps[-1], process)
    kill_all(process)
    assert list((workdir / "logs").glob("*.lock"))
    before = contents(workdir)
    assert "configuration" in run(workdir, expect=2, **{**ENDLESS, "seed": 4}, **NO_TIME_OUTS)
    assert contents(workdir) == before
    process = start(workdir, **ENDLESS, max_restarts=1, **NO_TIME_OUTS)
    wait_until(lambda: len(read_run_file(workdir)["starts"]) == 3, process)
    ranks_of(process)[0].kill()  # its restart is not held up by what it has left
    wait_until(lambda: len(read_run_file(workdir)["starts"]) == 4, process)
    process.send_signal(signal.SIGTERM)
    end(process, 75)


@pytest.mark.slow
def test_a_second_evaluation_is_refused(tmp_path: Path) -> None:
    """Into the same folder; and nobody overwrites a run that is being evaluated."""
    workdir = tmp_path / "run"
    short = {**TINY, "n_train_iters": 2}
    run(workdir, **short)
    process = start(workdir, **LOSS, eval_folder="loss", n_gpus_per_node=2, **NO_TIME_OUTS)
    wait_until(lambda: len(list((workdir / "loss" / "loss.chunks").glob("*.npz"))) >= 2, process)
    ranks = ranks_of(process)
    for rank in ranks.values():
        rank.suspend()  # it is not to finish meanwhile
    try:
        before = contents(workdir)
        is_refused(workdir, ranks[0].pid, **LOSS, eval_folder="./loss/")
        is_refused(workdir, ranks[0].pid, **short, overwrite=True)
        assert contents(workdir) == before
        run(workdir, **{**LOSS, "eval_n_items": 2}, eval_folder="other", **NO_TIME_OUTS)
    finally:
        for rank in ranks.values():
            rank.resume()
    end(process)
    run(workdir, **short, overwrite=True, **NO_TIME_OUTS)
