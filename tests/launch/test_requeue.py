"""When a stopped job is started again."""

import json
from pathlib import Path

import pytest

from launch.command import resolve
from launch.jobs.job_file import HOME_VARIABLE, JobFile, find_run, known_runs, read_job_file, write_job_file
from launch.jobs.requeue import arguments_of_restart, decide, progress_mark
from launch.jobs.slurm import minutes_of
from launch.jobs.status import run_states, table
from util.errors import UsageError
from util.run_file import update_run_file
from util.run_options import RunOptions


def job(**fields: object) -> JobFile:
    values = {"job_id": "12", "executor": "local", "folder": "", "directory": "/", "arguments": [], "max_requeues": 3}
    return JobFile(**{**values, **fields})  # type: ignore[arg-type]


def test_requeued_as_long_as_it_gets_further() -> None:
    record = job()
    assert [decide(record, f"step {step}, x", "") for step in (10, 20, 30)] == ["", "", ""]
    assert record.requeues == 3
    assert "3 times" in decide(record, "step 40, x", "")
    assert record.requeues == 3


def test_two_starts_without_progress_are_the_last() -> None:
    record = job(max_requeues=10)
    assert [decide(record, mark, "") for mark in ("step 10, x", "step 10, x", "step 20, x", "step 20, x")] == [""] * 4
    assert decide(record, "step 20, x", "") == "it was started 2 times without getting further (step 20)"
    assert record.note.startswith("not requeued: ")
    record.wish = "requeue"
    assert decide(record, "step 20, x", "") == ""
    assert decide(record, "step 20, x", "") == ""


def test_the_scheduler_may_have_something_against_it() -> None:
    record = job()
    assert decide(record, "step 10, x", "the job is COMPLETING") == "the job is COMPLETING"
    assert record.requeues == 0


def test_wishes_of_a_person_come_first_and_count_once() -> None:
    record = job(wish="stop", requeues=1)
    assert decide(record, "step 10, x", "") == "it was told to stop"
    record.wish, record.requeues = "requeue", 3
    assert decide(record, "step 10, x", "") == ""
    assert record.wish == ""
    assert record.requeues == 1
    record.wish = "requeue"
    assert decide(record, "step 20, x", "cancelled by somebody") == "cancelled by somebody"


def test_mark_moves_with_snapshots_and_evaluation_files(tmp_path: Path) -> None:
    command = resolve(["--workdir", str(tmp_path)])
    marks = [progress_mark(command)]
    update_run_file(tmp_path, last_snapshot={"step": 7})
    marks.append(progress_mark(command))
    (tmp_path / "eval" / "nll.chunks").mkdir(parents=True)
    (tmp_path / "eval" / "nll.chunks" / "00000000.npz").write_bytes(b"1")
    marks.append(progress_mark(command))
    (tmp_path / "eval" / "nll.chunks" / "claim").write_bytes(b"1")
    assert progress_mark(command) == marks[-1]
    assert len(set(marks)) == 3
    assert marks[1].startswith("step 7, ")


def test_a_restart_neither_deletes_nor_goes_back() -> None:
    words = ["--workdir", "somewhere", "--seed", "3"]
    assert arguments_of_restart(resolve(words)) == words
    for flags in (["--overwrite"], ["--checkpoint", "checkpoint_10.pth"]):
        run = resolve(arguments_of_restart(resolve([*words, *flags])))[RunOptions]
        assert (run.overwrite, run.checkpoint, run.workdir, run.seed) == (False, "", "somewhere", 3)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("5", 5), ("5:30", 6), ("1:00:00", 60), ("0:00:01", 1), ("1-0", 1440), ("1-2:30", 1590), ("2-00:00:00", 2880)],
)
def test_time_limits(text: str, minutes: int) -> None:
    assert minutes_of(text) == minutes


@pytest.mark.parametrize("text", ["", "0", "soon", "1:2:3:4", "-5", "a-5", "5;reboot"])
def test_bad_time_limits(text: str) -> None:
    with pytest.raises(UsageError, match="--time"):
        minutes_of(text)


def test_runs_are_remembered_and_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    run = tmp_path / "run"
    write_job_file(run, job())
    assert read_job_file(run) == job(submitted=read_job_file(run).submitted)  # type: ignore[union-attr]
    assert known_runs() == [run]
    assert find_run("12") == find_run(str(run)) == run
    with pytest.raises(UsageError, match="13 is neither"):
        find_run("13")
    # What cannot be read is as if it were not there.
    (tmp_path / "home" / "runs" / "other.json").write_text("{")
    assert known_runs() == [run]
    (run / "job.json").write_text(json.dumps({"job_id": "1"}))
    assert read_job_file(run) is None
    (run / "job.json").unlink()
    assert known_runs() == []


def test_status_needs_no_scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    run = tmp_path / "run"
    write_job_file(run, job(executor="slurm", note="requeued at step 30"))
    update_run_file(run, state="preempted", step=30, rate=2.0, world_size=4, exit_reason="SIGTERM")
    (run / "config.txt").write_text("n_train_iters = 100\n")
    (status,) = run_states([run])
    assert [status[name] for name in ("step", "total", "eta", "world_size")] == [30, 100, None, 4]
    assert status["scheduler"] == "UNKNOWN (squeue: not found)"
    assert status["last_error"] == "SIGTERM; requeued at step 30"
    head, line = table([status]).splitlines()
    assert head.startswith("RUN")
    assert "30/100" in line
