"""Image folders as users have them, and machines on which data workers cannot work: said before the first step."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.data.image_files import picture, save, save_many
from tests.data.test_loader import with_shared_memory
from tests.launch.test_doctor import start as start_doctor
from tests.launch.test_doctor import verdicts
from tests.system.command import ROOT, arguments, run
from tests.system.in_process import refusal, run_here
from tests.system.test_bad_input import message

TINY = {"config": "configs/smoke/tiny.txt", "dataset": "folder", "n_train_iters": 2, "device": "cpu"}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    save_many(tmp_path / "images" / "train", 12)
    save_many(tmp_path / "images" / "val", 12)
    return tmp_path / "images"


def kept(workdir: Path) -> Any:
    return json.loads((workdir / "run.json").read_text())["data"]


def test_broken_images_are_named_before_the_first_step(images: Path, tmp_path: Path) -> None:
    for name in ("train/003.png", "val/011.png"):
        (images / name).write_bytes(b"")
    line = refusal(tmp_path / "run", **TINY, data_location=images)
    assert line.startswith("2 of 24 images cannot be used: ")
    assert "train/003.png" in line
    assert "val/011.png" in line
    assert not (tmp_path / "run" / "run.json").exists()
    for name in ("train/003.png", "val/011.png"):
        save(images / name, picture(8, 8))
    run_here(tmp_path / "run", **TINY, data_location=images)


@pytest.mark.slow
def test_broken_images_are_named_once_by_two_ranks(images: Path, tmp_path: Path) -> None:
    for name in ("000.png", "001.png"):
        (images / "train" / name).write_bytes(b"")
    output = run(tmp_path / "run", expect=2, **TINY, data_location=images, n_gpus_per_node=2)
    assert "2 of 24 images cannot be used" in message(output)
    assert output.count("checking images") == 1


def test_a_run_keeps_what_its_data_were_and_says_what_has_changed(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    workdir = tmp_path / "run"
    with caplog.at_level("INFO"):
        run_here(workdir, **TINY, data_location=images)
    assert "data: train has 12 images in 1 folder, test has 12 images in 1 folder" in caplog.text
    first = kept(workdir)
    assert {split: (found["images"], found["folders"]) for split, found in first.items()} == {
        "train": (12, 1),
        "test": (12, 1),
    }
    caplog.clear()
    run_here(workdir, **{**TINY, "n_train_iters": 3}, data_location=images, mode="continue")
    assert "has changed" not in caplog.text
    assert kept(workdir) == first
    save_many(tmp_path / "disk", 6)
    (images / "train" / "more").symlink_to(tmp_path / "disk")
    (images / "val" / "011.png").rename(images / "val" / "last.png")
    run_here(workdir, **{**TINY, "n_train_iters": 4}, data_location=images, mode="continue")
    assert (
        "the data set has changed since this run began: train had 12 images in 1 folder and has 18 images in 2 folders;"
        " test has other files among its 12 images in 1 folder"
    ) in caplog.text
    assert kept(workdir)["train"]["images"] == 18
    caplog.clear()
    (tmp_path / "disk" / "000.png").unlink()
    run_here(tmp_path / "other", **TINY, data_location=images)
    assert "has changed" not in caplog.text


def test_generated_data_are_kept_too(tmp_path: Path) -> None:
    run_here(tmp_path / "run", **{**TINY, "dataset": "digits"})
    assert kept(tmp_path / "run") == {"train": {"images": 1541}, "test": {"images": 256}}


@pytest.fixture
def far_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A TMPDIR in which no socket has a path that is short enough."""
    folder = tmp_path / ("x" * 127)
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@pytest.mark.slow
def test_workers_whose_sockets_cannot_be_made_end_the_run(images: Path, tmp_path: Path, far_away: Path) -> None:
    output = run(tmp_path / "run", expect=1, **TINY, data_location=images, n_workers=2)
    last = output.splitlines()[-1]
    assert "data workers cannot hand over their batches (AF_UNIX path too long)" in last
    assert f"{far_away}: set TMPDIR to a folder" in last
    assert "Traceback" not in output


# Batches of 1 MiB, two of each of four workers on their way.
LARGE = {"training_batch_size": 16384, "n_workers": 2, "n_gpus_per_node": 2}


@pytest.mark.slow
def test_workers_without_shared_memory_end_the_run(tmp_path: Path) -> None:
    words = arguments(tmp_path / "run", **{**TINY, "dataset": "digits"}, **LARGE)
    process = subprocess.run(
        [*with_shared_memory("mount -t tmpfs -o size=1m tmpfs /dev/shm"), *words],
        cwd=ROOT, text=True, timeout=500, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert process.returncode == 1, process.stdout
    assert "of 1 MiB are free in /dev/shm: give it more (in a container --ipc host" in process.stdout.splitlines()[-1]
    assert "Traceback" not in process.stdout


def examined(*words: str, before: tuple[str, ...] = ()) -> tuple[dict[str, str], str]:
    """The doctor's verdicts and its output."""
    process = start_doctor(ROOT, *words, before=before)
    output, _ = process.communicate(timeout=500)
    return verdicts(output), output


@pytest.mark.slow
def test_the_doctor_finds_broken_images_of_both_splits(images: Path, tmp_path: Path) -> None:
    for name in ("train/003.png", "val/011.png"):
        (images / name).write_bytes(b"")
    words = ["--workdir", str(tmp_path / "run"), "--dataset", "folder", "--data_location", str(images)]
    found, output = examined(*words, "--n_gpus_per_node", "2")
    assert found["data set"] == "fault"
    assert "2 of 24 images cannot be used" in output
    assert "val/011.png" in output


@pytest.mark.slow
@pytest.mark.usefixtures("far_away")
def test_the_doctor_tries_a_socket(images: Path, tmp_path: Path) -> None:
    words = ["--workdir", str(tmp_path / "run"), "--dataset", "folder", "--data_location", str(images)]
    found, output = examined(*words, "--n_workers", "2")
    assert found["data workers"] == "fault"
    assert "set TMPDIR to a folder" in output
    assert examined(*words)[0]["data workers"] == "ok"


@pytest.mark.slow
def test_the_doctor_looks_at_shared_memory(tmp_path: Path) -> None:
    words = ["--workdir", str(tmp_path / "run")]
    words += [word for name, value in LARGE.items() for word in (f"--{name}", str(value))]
    for size, verdict in (("1m", "fault"), ("9m", "warning")):
        found, output = examined(
            *words, before=tuple(with_shared_memory(f"mount -t tmpfs -o size={size} tmpfs /dev/shm"))
        )
        assert found["data workers"] == verdict, output
