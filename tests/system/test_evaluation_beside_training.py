"""An evaluation is of one snapshot, whatever its run, or another one, does to the folder meanwhile."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import trainers.run
from evaluators import engine
from tests.patience import wait_for
from tests.system.command import end, kill_all, run, start, wait_until
from tests.system.folders import contents
from tests.system.in_process import refusal, run_here
from util.errors import RunFailed
from util.pinned import Pins
from util.snapshot import inspect_snapshot

TINY: dict[str, Any] = {
    "config": "configs/smoke/tiny.txt", "device": "cpu", "n_train_iters": 2, "save_freq": 1, "snapshot_freq": 1,
    "log_freq": 1, "sample_freq": 1_000_000, "eval_n_samples": 4,
}  # fmt: skip
LOSS: dict[str, Any] = {"mode": "eval", "eval_loss": True, "eval_n_items": 32, "testing_batch_size": 4}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("trained") / "run"
    run_here(workdir, **TINY)
    return workdir


@pytest.fixture
def workdir(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def results(workdir: Path, folder: str) -> dict[str, Any]:
    return json.loads((workdir / folder / "results.json").read_text())


def kept(workdir: Path, step: int) -> Path:
    return workdir / "checkpoints" / f"checkpoint_{step}.pth"


def is_of(workdir: Path, folder: str, snapshot: Path) -> None:
    """The results are of that snapshot: by what they say, and by their values."""
    found = inspect_snapshot(snapshot)
    said = results(workdir, folder)
    assert said["checkpoint"] == {"step": found.step, "digest": found.sha256}
    run_here(workdir, **TINY, **LOSS, eval_folder=f"{folder}_again", ckpt_file=snapshot)
    assert said["results"]["loss"]["value"] == results(workdir, f"{folder}_again")["results"]["loss"]["value"]
    for name in (folder, f"{folder}_again"):
        assert not (workdir / name / ".pinned").exists()


@pytest.fixture
def moves_on(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run has another snapshot when one that has been chosen is about to be read."""
    running = workdir / "checkpoints" / "checkpoint.pth"
    shutil.copyfile(kept(workdir, 1), running.with_name("next"))
    shutil.copyfile(kept(workdir, 2), running.with_name("now"))
    os.replace(running.with_name("now"), running)
    read = trainers.run.read_snapshot

    def late(path: Path) -> dict[str, Any]:
        if running.with_name("next").exists():
            os.replace(running.with_name("next"), running)
        return read(path)

    monkeypatch.setattr(trainers.run, "read_snapshot", late)


@pytest.mark.parametrize("name", [{}, {"ckpt_file": "checkpoint.pth"}])
@pytest.mark.usefixtures("moves_on")
def test_what_is_recorded_is_what_was_read(name: dict[str, Any], workdir: Path) -> None:
    run_here(workdir, **TINY, **LOSS, eval_folder="loss", **name)
    assert inspect_snapshot(workdir / "checkpoints" / "checkpoint.pth").step == 1
    is_of(workdir, "loss", kept(workdir, 2))


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
@pytest.mark.usefixtures("moves_on")
def test_a_snapshot_that_cannot_be_linked(number: int, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    run_here(workdir, **TINY, **LOSS, eval_folder="loss")
    is_of(workdir, "loss", kept(workdir, 2))


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no other file system is known")
@pytest.mark.parametrize("linked", [False, True])
def test_a_snapshot_of_another_file_system(linked: bool, workdir: Path, tmp_path: Path) -> None:
    elsewhere = Path("/dev/shm") / f"scorefleet_test_{os.getpid()}.pth"
    try:
        shutil.copyfile(kept(workdir, 1), elsewhere)
        name = elsewhere
        if linked:
            name = tmp_path / "link.pth"
            name.symlink_to(elsewhere)
        run_here(workdir, **TINY, **LOSS, eval_folder="loss", ckpt_file=name)
        is_of(workdir, "loss", elsewhere)
        shutil.rmtree(workdir / "checkpoints")
        (workdir / "checkpoints").symlink_to("/dev/shm")
        run_here(workdir, **TINY, **LOSS, eval_folder="other", ckpt_file=elsewhere.name)
        assert results(workdir, "other")["checkpoint"] == results(workdir, "loss")["checkpoint"]
    finally:
        elsewhere.unlink()


def interrupt(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation that ends after three chunks."""
    write, left = engine.write_arrays, [3]

    def fail(*arguments: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "write_arrays", fail)
        with pytest.raises(RunFailed):
            run_here(workdir, **TINY, **LOSS, eval_folder="loss")


def test_an_interrupted_evaluation_goes_on_with_its_snapshot(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Although the run has gone on, and nothing else keeps it."""
    shutil.copyfile(kept(workdir, 2), workdir.parent / "second.pth")
    interrupt(workdir, monkeypatch)
    run_here(workdir, **{**TINY, "mode": "continue", "n_train_iters": 5, "save_freq": 0})
    kept(workdir, 2).unlink()
    before = contents(workdir)
    refusal(workdir, **TINY, **LOSS, eval_folder="loss", eval_fid=True, fid_statistics="typo")
    assert contents(workdir) == before
    with caplog.at_level("INFO"):
        run_here(workdir, **TINY, **LOSS, eval_folder="loss")
    assert "goes on with it" in caplog.text
    assert "3 of 8 chunks are done already" in caplog.text
    is_of(workdir, "loss", workdir.parent / "second.pth")
    run_here(workdir, **TINY, **LOSS, eval_folder="loss")
    assert results(workdir, "loss")["checkpoint"]["step"] == 5


def test_another_snapshot_is_asked_for(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then what an interrupted evaluation has held does not count; a refused command does not touch it."""
    interrupt(workdir, monkeypatch)
    before = contents(workdir)
    wrong = {**TINY, **LOSS, "eval_folder": "loss", "ckpt_file": "checkpoint_1.pth"}
    refusal(workdir, **wrong, n_channels=32)
    refusal(workdir, **wrong, eval_fid=True, fid_statistics="typo")
    assert contents(workdir) == before
    run_here(workdir, **TINY, **LOSS, eval_folder="loss", ckpt_file="checkpoint_1.pth")
    is_of(workdir, "loss", kept(workdir, 1))


@pytest.mark.parametrize("leave", [lambda pins: None, lambda pins: (pins / "model.json").write_text("{")])
def test_what_a_kill_has_left(leave: Callable[[Path], object], workdir: Path) -> None:
    """It is taken up, or cleaned away where it is not whole."""
    pins = workdir / "loss" / ".pinned"
    Pins(pins.parent).hold("model", "", lambda: kept(workdir, 1))
    (pins / "model-half.pth").write_bytes(b"PK")
    leave(pins)
    whole = (pins / "model.json").read_text() != "{"
    run_here(workdir, **TINY, **LOSS, eval_folder="loss")
    is_of(workdir, "loss", kept(workdir, 1 if whole else 2))


@pytest.mark.parametrize("folder", ["new", "new/below"])
def test_a_refused_evaluation_leaves_nothing(folder: str, workdir: Path) -> None:
    before = contents(workdir)
    refusal(workdir, **TINY, mode="eval", eval_fid=True, fid_statistics="typo", eval_folder=folder)
    refusal(workdir, **TINY, **LOSS, eval_folder=folder, n_channels=32)
    refusal(workdir, **TINY, **LOSS, eval_folder=f"{folder}/../../out")
    assert contents(workdir) == before
    assert not (workdir.parent / "out").exists()


def test_what_is_overwritten_takes_its_pin_along(workdir: Path) -> None:
    """An evaluation of the new run is not one of the old run's snapshot."""
    Pins(workdir / "loss").hold("model", "", lambda: kept(workdir, 1))
    run_here(workdir, **{**TINY, "seed": 7}, overwrite=True)
    run_here(workdir, **{**TINY, "seed": 7}, **LOSS, eval_folder="loss")
    is_of(workdir, "loss", kept(workdir, 2))


@pytest.mark.slow
def test_beside_a_run_that_saves_at_every_step(tmp_path: Path) -> None:
    """On one rank and on two, and one that is killed and goes on."""
    workdir = tmp_path / "run"
    process = start(workdir, **{**TINY, "n_train_iters": 100_000})
    wait_until(lambda: kept(workdir, 3).exists(), process)
    for n_ranks in (1, 2):
        run(workdir, **TINY, **LOSS, eval_folder=f"on_{n_ranks}", n_gpus_per_node=n_ranks)
    evaluation = start(workdir, **{**TINY, **LOSS, "eval_n_items": 360}, eval_folder="killed", n_gpus_per_node=2)
    chunks = workdir / "killed" / "loss.chunks"
    wait_until(lambda: len(list(chunks.glob("*.npz"))) >= 3, evaluation)
    kill_all(evaluation)
    (record,) = (workdir / "killed" / ".pinned").glob("*.json")
    held = inspect_snapshot(record.with_name(json.loads(record.read_text())["file"]))
    wait_for(lambda: kept(workdir, held.step + 3).exists(), "more snapshots")
    output = run(workdir, **{**TINY, **LOSS, "eval_n_items": 360}, eval_folder="killed", n_gpus_per_node=1)
    assert "goes on with it" in output
    process.terminate()
    end(process, 75)
    assert results(workdir, "killed")["checkpoint"] == {"step": held.step, "digest": held.sha256}
    for n_ranks in (1, 2):
        folder = f"on_{n_ranks}"
        is_of(workdir, folder, kept(workdir, results(workdir, folder)["checkpoint"]["step"]))
