"""What a run went through stands in its folder, and on its page."""

import time
from pathlib import Path

import pytest

from evaluators.report.__main__ import main
from evaluators.report.records import read_runs
from tests.system.command import ranks_of, run, start, wait_for_end, wait_until
from util.errors import EXIT_FINISHED
from util.run_file import read_run_file

OPTIONS = {"config": "configs/smoke/tiny.txt", "device": "cpu", "snapshot_freq": 3, "log_freq": 1}


@pytest.mark.slow
def test_starts_of_a_run_that_was_killed(tmp_path: Path) -> None:
    began = time.time()
    process = start(tmp_path / "run", **OPTIONS, n_train_iters=100_000)
    wait_until(lambda: read_run_file(tmp_path / "run").get("step", 0) >= 4, process)
    ranks = ranks_of(process)
    process.kill()
    wait_for_end(ranks.values())
    for _ in range(2):  # the second one does not find anything to do, and is a start all the same
        run(tmp_path / "run", **OPTIONS, mode="continue", n_gpus_per_node=2, n_train_iters=20, total_batch_size=8)
    (read,) = read_runs([tmp_path / "run"])
    assert [start.world_size for start in read.starts][:2] == [1, 2]
    assert [start.reason for start in read.starts][:2] == ["killed", "finished"]
    first, second = read.starts[:2]
    assert first.lost == first.last_step - second.step
    assert second.last_step == 20
    moments = [moment for start in read.starts for moment in (start.started, start.ended)]
    assert began <= min(moments)
    assert sorted(moments) == moments
    assert main([str(tmp_path / "run"), "-o", str(tmp_path / "page.html")]) == EXIT_FINISHED
    assert "killed" in (tmp_path / "page.html").read_text()
