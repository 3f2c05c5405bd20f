"""What a command may change in the folder of a run: nothing until its first step; what it overwrites comes back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.system.command import end, kill_all, ranks_of, run, snapshot, start, state_differences, wait_until
from tests.system.folders import contents
from tests.system.in_process import refusal, run_here
from trainers.step import TrainingStep
from util.run_file import read_run_file
from util.snapshot import write_snapshot

TINY: dict[str, Any] = {
    "config": "configs/smoke/tiny.txt", "device": "cpu", "n_train_iters": 4, "log_freq": 1, "snapshot_freq": 2,
    "sample_freq": 1_000_000, "eval_n_samples": 4,
}  # fmt: skip
OTHER = {**TINY, "seed": 5, "n_train_iters": 3, "snapshot_freq": 0}
ENDLESS = {**OTHER, "n_train_iters": 100_000, "save_freq": 0}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that has been evaluated, with something of its owner's beside."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    run_here(workdir, **TINY)
    run_here(workdir, **TINY, mode="eval", eval_loss=True, eval_folder="loss")
    (workdir / "diagnostics").mkdir()
    (workdir / "diagnostics" / "step_1_rank_0.pt").write_text("1")
    (workdir / "notes.txt").write_text("mine")
    (workdir / "dequantizer" / "checkpoints").mkdir(parents=True)
    (workdir / "dequantizer" / "checkpoints" / "checkpoint.pth").write_text("of the model that was here")
    return workdir


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of what overwrites."""
    workdir = tmp_path_factory.mktemp("other") / "run"
    run_here(workdir, **OTHER)
    return workdir


@pytest.fixture
def workdir(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def is_only(workdir: Path, other: Path, n_starts: int = 1) -> None:
    """The folder holds the run of ``other``, its owner's files and nothing else."""
    assert state_differences(workdir, other) == []
    expected = {*contents(other), "notes.txt"}
    found = {*contents(workdir)} - {"diagnostics"}  # which stays, empty
    events = {name for name in (*expected, *found) if "tfevents" in name}
    assert found - events == expected - events
    assert len(list((workdir / "tensorboard").iterdir())) == n_starts


def has_begun(workdir: Path, step: int = 2) -> bool:
    """Whether a run that overwrites has come to a step."""
    status = read_run_file(workdir)
    return status.get("state") == "training" and status["step"] >= step


REFUSED: dict[str, dict[str, Any]] = {
    "a snapshot that is not there": {"mode": "continue", "learning_rate": 5, "checkpoint": "no_such.pth"},
    "data that is not there": {"overwrite": True, "dataset": "folder", "data_location": "typo"},
    "other data to go on with": {"mode": "continue", "dataset": "folder", "data_location": "typo"},
    "channels": {"overwrite": True, "image_channels": 3},
    "another network to go on with": {"mode": "continue", "n_channels": 24},
    "another run": {"seed": 5},
    "statistics that are not there": {"mode": "continue", "n_train_iters": 6, "fid_freq": 1, "fid_statistics": "typo"},
    "a detector that is not there": {"overwrite": True, "fid_freq": 1, "fid_detector": "typo.pt"},
    "a likelihood that is not there": {"overwrite": True, "likelihood_freq": 1, "eval_quantities": "typo"},
    "a dequantizer of another system": {"mode": "train_deq", "overwrite": True},
    "a solver": {"overwrite": True, "likelihood_solver": "euler99"},
    "an evaluation": {"mode": "eval", "eval_loss": True, "eval_fid": True, "fid_statistics": "typo"},
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_command_changes_nothing(case: str, workdir: Path) -> None:
    before = contents(workdir)
    refusal(workdir, **{**TINY, **REFUSED[case]})
    assert contents(workdir) == before


@pytest.mark.parametrize("options", [{**OTHER, "overwrite": True}, {**TINY, "mode": "continue", "n_train_iters": 9}])
def test_a_first_step_that_fails_changes_nothing(
    options: dict[str, Any], workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(TrainingStep, "__call__", fail)
    before = contents(workdir)
    with pytest.raises(RuntimeError):
        run_here(workdir, **options)
    assert contents(workdir) == before


def test_a_refused_command_does_not_stand_in_the_way(tmp_path: Path, other: Path) -> None:
    refusal(tmp_path, **OTHER, image_channels=3)
    assert contents(tmp_path) == {}
    run_here(tmp_path, **OTHER)
    assert state_differences(tmp_path, other) == []


@pytest.mark.parametrize("linked", ["checkpoints", "tensorboard", "evaluations", "loss", "dequantizer", "config.txt"])
def test_what_is_linked_is_overwritten_too(linked: str, workdir: Path, tmp_path: Path, other: Path) -> None:
    """A folder keeps its link and loses its content."""
    (workdir / linked).rename(tmp_path / "elsewhere")
    (workdir / linked).symlink_to(tmp_path / "elsewhere")
    is_folder = (workdir / linked).is_dir()
    run_here(workdir, **OTHER, overwrite=True)
    assert (workdir / linked).is_symlink() == is_folder
    if linked in ("loss", "dequantizer"):  # of which a fresh run has none
        assert list((tmp_path / "elsewhere").iterdir()) == []
        (workdir / linked).unlink()
    is_only(workdir, other)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="mounting needs root")
def test_what_is_mounted_is_overwritten_too(workdir: Path, other: Path) -> None:
    (workdir / "checkpoints").rename(workdir / "before")
    (workdir / "checkpoints").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", workdir / "checkpoints"], check=True)
    try:
        shutil.copytree(workdir / "before", workdir / "checkpoints", dirs_exist_ok=True)
        shutil.rmtree(workdir / "before")
        run_here(workdir, **OTHER, overwrite=True)
        is_only(workdir, other)
        assert os.path.ismount(workdir / "checkpoints")
    finally:
        subprocess.run(["umount", "-l", workdir / "checkpoints"], check=True)


def test_snapshots_without_a_record(workdir: Path, tmp_path: Path, other: Path) -> None:
    """Snapshots say themselves how they were trained; a fresh run neither goes on from others nor keeps them."""
    (workdir / "config.txt").unlink()
    before = contents(workdir)
    assert "seed: 0 -> 5" in refusal(workdir, **OTHER)
    state = snapshot(workdir)
    del state["config"]
    write_snapshot(tmp_path / "foreign" / "checkpoints" / "checkpoint.pth", state)
    assert "does not say how it was trained" in refusal(tmp_path / "foreign", **OTHER)
    assert contents(workdir) == before
    run_here(workdir, **OTHER, overwrite=True)
    is_only(workdir, other)


def test_a_link_to_nothing(workdir: Path) -> None:
    shutil.rmtree(workdir / "samples", ignore_errors=True)
    (workdir / "samples").symlink_to("nowhere")
    before = contents(workdir)
    assert "samples is no folder, or a link to none" in refusal(workdir, **OTHER, overwrite=True)
    assert contents(workdir) == before


@pytest.mark.slow
def test_a_killed_run_without_a_snapshot_has_overwritten_nothing(workdir: Path, tmp_path: Path, other: Path) -> None:
    before = contents(workdir)
    process = start(workdir, **ENDLESS, overwrite=True)
    wait_until(lambda: has_begun(workdir), process)
    kill_all(process)
    assert snapshot(workdir, ".aside/checkpoint.pth")["step"] == 4
    shutil.copytree(workdir, tmp_path / "again")
    shutil.copytree(workdir, tmp_path / "twice")
    # Another command finds the old run ...
    assert "seed: 0 -> 7" in refusal(workdir, **{**TINY, "seed": 7})
    assert contents(workdir) == before
    # ... also one that goes on with it, ...
    run_here(tmp_path / "again", mode="continue", n_train_iters=5)
    assert snapshot(tmp_path / "again")["step"] == 5
    assert not list((tmp_path / "again").rglob(".*"))
    # ... and the same goes on with the new one, as does a second that overwrites.
    process = start(tmp_path / "twice", **ENDLESS)
    wait_until(lambda: has_begun(tmp_path / "twice", 5), process)
    kill_all(process)
    run_here(tmp_path / "twice", **OTHER, overwrite=True)
    is_only(tmp_path / "twice", other)


@pytest.mark.slow
def test_what_a_failed_run_was_to_overwrite_comes_back(workdir: Path) -> None:
    before = contents(workdir)
    process = start(workdir, **ENDLESS, overwrite=True, n_gpus_per_node=2)
    wait_until(lambda: has_begun(workdir), process)
    ranks_of(process)[0].kill()
    output = end(process, 1)
    assert "the run that was to be overwritten is back" in output
    assert contents(workdir) == before


@pytest.mark.slow
@pytest.mark.parametrize("begun", [False, True])
def test_a_restart_still_overwrites(begun: bool, workdir: Path, tmp_path: Path) -> None:
    """Whether the start before it has taken a step or not."""
    options = {**OTHER, "n_train_iters": 60}
    process = start(workdir, **options, overwrite=True, max_restarts=1)
    wait_until(lambda: 0 in ranks_of(process) and (has_begun(workdir) or not begun), process)
    ranks_of(process)[0].kill()
    assert "restart 1 of 1" in end(process)
    run(tmp_path / "other", **options)
    is_only(workdir, tmp_path / "other", n_starts=1 + begun)


def test_an_earlier_run_needs_no_settings(trained: Path, workdir: Path, tmp_path: Path) -> None:
    """continue and eval take them from the folder; what counts for one command is not kept there."""
    assert "overwrite" not in (trained / "config.txt").read_text()
    run_here(workdir, mode="eval", eval_loss=True, eval_folder="again")
    results = [json.loads((workdir / name / "results.json").read_text())["results"] for name in ("loss", "again")]
    assert results[0]["loss"]["value"] == results[1]["loss"]["value"]
    run_here(workdir, mode="continue", n_train_iters=6)
    run_here(tmp_path / "whole", **{**TINY, "n_train_iters": 6})
    assert state_differences(workdir, tmp_path / "whole") == []
    record = (tmp_path / "whole" / "config.txt").read_text()
    assert (workdir / "config.txt").read_text() == record.replace(str(tmp_path / "whole"), str(workdir))
