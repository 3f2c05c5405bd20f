"""Snapshots: whole or absent, and never used when damaged."""

import errno
import json
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from util.errors import RunFailed, UsageError
from util.snapshot import (
    FORMAT,
    PREVIOUS,
    RUNNING,
    DamagedSnapshot,
    SnapshotWriter,
    choose_snapshot,
    find_snapshots,
    inspect_snapshot,
    read_snapshot,
    write_snapshot,
)


def state(step: int) -> dict:
    return {"step": step, "networks": {"score": {"w": torch.full((100, 7), float(step))}}, "emas": {}}


def write_all(folder: Path, steps: list[int], keep: bool = False) -> None:
    writer = SnapshotWriter(folder, lambda snapshot: None)
    for step in steps:
        writer.save(state(step), keep)
    writer.wait()
    writer.close()


def test_round_trip_and_plain_torch_load(tmp_path: Path) -> None:
    checksum = write_snapshot(tmp_path / "a.pth", state(7))
    found = inspect_snapshot(tmp_path / "a.pth")
    assert (found.step, found.sha256) == (7, checksum)
    assert torch.equal(read_snapshot(tmp_path / "a.pth")["networks"]["score"]["w"], state(7)["networks"]["score"]["w"])
    assert torch.load(tmp_path / "a.pth", weights_only=True)["step"] == 7


def test_running_previous_and_kept(tmp_path: Path) -> None:
    write_all(tmp_path, [1, 2, 3], keep=True)
    names = {path.name: inspect_snapshot(path).step for path in tmp_path.iterdir()}
    assert names == {RUNNING: 3, PREVIOUS: 2, "checkpoint_1.pth": 1, "checkpoint_2.pth": 2, "checkpoint_3.pth": 3}


def test_every_single_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / RUNNING
    write_snapshot(path, state(1))
    good = path.read_bytes()
    for position in [*range(0, len(good), 53), *range(len(good) - 150, len(good))]:
        bad = bytearray(good)
        bad[position] ^= 0x10
        path.write_bytes(bad)
        with pytest.raises(DamagedSnapshot):
            inspect_snapshot(path)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncation_falls_back_to_the_previous_one_and_says_so(tmp_path: Path, fraction: float) -> None:
    write_all(tmp_path, [10, 20])
    content = (tmp_path / RUNNING).read_bytes()
    (tmp_path / RUNNING).write_bytes(content[: int(len(content) * fraction)])
    said: list[str] = []
    found = find_snapshots(tmp_path, said.append)
    assert found is not None
    assert found.step == 10
    assert RUNNING in said[0]


def test_the_running_one_is_newer_than_a_larger_step(tmp_path: Path) -> None:
    write_all(tmp_path, [30], keep=True)
    write_all(tmp_path, [11, 12])
    found = find_snapshots(tmp_path, lambda line: None)
    assert found is not None
    assert found.step == 12
    (tmp_path / RUNNING).write_bytes(b"")
    found = find_snapshots(tmp_path, lambda line: None)
    assert found is not None
    assert found.step == 11


def test_nothing_intact(tmp_path: Path) -> None:
    (tmp_path / RUNNING).write_bytes(b"")
    assert find_snapshots(tmp_path, lambda line: None) is None


def test_a_failed_write_leaves_the_last_one_and_is_reported(tmp_path: Path) -> None:
    writer = SnapshotWriter(tmp_path, lambda snapshot: None)
    writer.save(state(1), keep=False)
    writer.wait()
    writer.save({"step": 2, "networks": {"bad": lambda: 0}, "emas": {}}, keep=False)
    with pytest.raises(RunFailed, match="could not be written"):
        writer.wait()
    writer.close()
    assert inspect_snapshot(tmp_path / RUNNING).step == 1
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_called_that(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although torch says something else of it."""
    write_all(tmp_path, [1])
    make = Path.open

    def full(path: Path, mode: str = "r", **options: Any) -> Any:
        file = make(path, mode, **options)
        if mode == "wb":
            return Full(file)
        return file

    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, _data: bytes) -> int:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "open", full)
    writer = SnapshotWriter(tmp_path, lambda snapshot: None)
    writer.save(state(2), keep=False)
    with pytest.raises(RunFailed, match=f"{tmp_path}: .*disk full"):
        writer.wait()
    writer.close()
    assert inspect_snapshot(tmp_path / RUNNING).step == 1


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"step": 1, "networks": Harmful(), "emas": {}}, tmp_path / "x.pth")
    with pytest.raises(UsageError, match="safely"):
        read_snapshot(tmp_path / "x.pth")
    assert not (tmp_path / "ran").exists()


def test_another_dictionary_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {}}, tmp_path / "x.pth")
    with pytest.raises(UsageError, match="import_checkpoint"):
        read_snapshot(tmp_path / "x.pth")


def test_a_snapshot_is_of_the_moment_at_which_it_was_saved(tmp_path: Path) -> None:
    writer = SnapshotWriter(tmp_path, lambda snapshot: None)
    live = state(1)
    writer.prepare(live)
    for step in (1, 2):
        live["step"] = step
        live["networks"]["score"]["w"].fill_(step)
        writer.save(live, keep=True)
        live["networks"]["score"]["w"].fill_(-1)
    writer.wait()
    writer.close()
    for step in (1, 2):
        assert (read_snapshot(tmp_path / f"checkpoint_{step}.pth")["networks"]["score"]["w"] == step).all()


@pytest.mark.parametrize("read_back", [True, False])
def test_what_the_disk_does_not_hold_is_noticed_by_reading_it_back(
    tmp_path: Path, read_back: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush = os.fsync

    def lose(descriptor: int) -> None:
        flush(descriptor)
        for name in tmp_path.iterdir():
            content = bytearray(name.read_bytes())
            content[len(content) // 2] ^= 1
            name.write_bytes(content)

    monkeypatch.setattr(os, "fsync", lose)
    if read_back:
        with pytest.raises(OSError, match="differs"):
            write_snapshot(tmp_path / "a.pth", state(1))
        assert not list(tmp_path.iterdir())
    else:
        write_snapshot(tmp_path / "a.pth", state(1), read_back=False)
        monkeypatch.undo()
        with pytest.raises(DamagedSnapshot):
            inspect_snapshot(tmp_path / "a.pth")


def test_a_snapshot_says_its_format_and_older_and_newer_ones_are_told_apart(tmp_path: Path) -> None:
    state = {"step": 3, "config": {}, "networks": {}, "emas": {}, "optimizers": {}, "scaler": {}}
    write_snapshot(tmp_path / "now.pth", state)
    assert read_snapshot(tmp_path / "now.pth")["format"] == FORMAT
    torch.save(state, tmp_path / "older.pth")
    assert read_snapshot(tmp_path / "older.pth")["step"] == 3
    write_snapshot(tmp_path / "newer.pth", {**state, "format": FORMAT + 1})
    with pytest.raises(UsageError, match="update the program"):
        read_snapshot(tmp_path / "newer.pth")


def with_comment(path: Path, **note: object) -> None:
    """Change what the comment of a snapshot says."""
    write_snapshot(path, state(7))
    content = path.read_bytes()
    position = content.rfind(b"PK\x05\x06")
    comment = json.dumps({**json.loads(content[position + 22 :]), **note}).encode()
    path.write_bytes(content[: position + 20] + len(comment).to_bytes(2, "little") + comment)


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(path.parent)  # the length of an address is limited
        try:
            listener.bind(path.name)
        finally:
            os.chdir(here)


UNUSABLE: dict[str, Callable[[Path], object]] = {
    "a link to nothing": lambda path: path.symlink_to("nowhere.pth"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link through a file": lambda path: path.symlink_to(f"{RUNNING}/x"),
    "a folder": Path.mkdir,
    "a pipe that nobody writes to": os.mkfifo,
    "a socket": a_socket,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "what cannot be read": lambda path: path.symlink_to("/proc/self/mem"),
    "an infinite step": lambda path: with_comment(path, step=float("inf")),
    "a step that is no number": lambda path: with_comment(path, step=None),
    "a step that no run comes to": lambda path: with_comment(path, step=10**400),
    "a step before the first": lambda path: with_comment(path, step=-1),
    "a number that is none": lambda path: with_comment(path, number=1e300),
    "a comment that is a list": lambda path: path.write_bytes(b"PK\x05\x06" + bytes(16) + b"\x02\x00[]"),
    "a comment of brackets": lambda path: path.write_bytes(b"PK\x05\x06" + bytes(16) + b"\xe0\x03" + b"[" * 992),
    "nothing": Path.touch,
}


@pytest.mark.parametrize("kind", UNUSABLE)
@pytest.mark.parametrize("name", ["checkpoint_5.pth", PREVIOUS])
def test_what_cannot_be_used_is_passed_over_with_a_line(kind: str, name: str, tmp_path: Path) -> None:
    """Whatever it is: the intact one beside it is found, and the run's next ones take their places."""
    write_all(tmp_path, [3])
    UNUSABLE[kind](tmp_path / name)
    said: list[str] = []
    found = find_snapshots(tmp_path, said.append)
    assert found is not None
    assert (found.path.name, found.step) == (RUNNING, 3)
    assert [line.startswith(f"{tmp_path / name}: ") for line in said] == [True]
    assert "\n" not in said[0]
    with pytest.raises(UsageError, match=name):
        choose_snapshot(tmp_path, name, "--checkpoint")
    write_all(tmp_path, [4, 5], keep=True)
    assert inspect_snapshot(tmp_path / "checkpoint_5.pth").step == 5
    assert inspect_snapshot(tmp_path / PREVIOUS).step == 4


@pytest.mark.parametrize("kind", UNUSABLE)
def test_the_running_one_cannot_be_used(kind: str, tmp_path: Path) -> None:
    write_all(tmp_path, [3, 4])
    (tmp_path / RUNNING).unlink()
    UNUSABLE[kind](tmp_path / RUNNING)
    found = find_snapshots(tmp_path, lambda line: None)
    assert found is not None
    assert found.step == 3
    write_all(tmp_path, [5])
    assert inspect_snapshot(tmp_path / RUNNING).step == 5


def without_times(folder: Path) -> None:
    """As a copy is that keeps no times: they are those of the copying, in any order."""
    paths = sorted(folder.iterdir())
    random.Random(4).shuffle(paths)
    for time, path in enumerate(paths):
        os.utime(path, (time, time))


def test_the_newest_of_a_copy_without_times(tmp_path: Path) -> None:
    write_all(tmp_path, [3, 6, 9, 12], keep=True)
    for path in tmp_path.iterdir():  # no longer names of one file
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    without_times(tmp_path)
    for name, step in ((RUNNING, 12), ("checkpoint_12.pth", 12), (PREVIOUS, 9), ("checkpoint_9.pth", 9)):
        found = find_snapshots(tmp_path, lambda line: None)
        assert found is not None
        assert found.step == step
        (tmp_path / name).write_bytes(b"")
    (tmp_path / RUNNING).write_bytes((tmp_path / "checkpoint_3.pth").read_bytes())  # copied while the run went on
    assert choose_snapshot(tmp_path, "", "--checkpoint") == tmp_path / "checkpoint_6.pth"


def test_a_run_that_went_back_goes_on_from_there(tmp_path: Path) -> None:
    """Whatever the times say: what it has written since is newer than a larger step from before."""
    write_all(tmp_path, [10, 20, 30], keep=True)
    write_all(tmp_path, [11, 12], keep=True)
    without_times(tmp_path)
    for name, step in ((RUNNING, 12), ("checkpoint_12.pth", 12), (PREVIOUS, 11), ("checkpoint_11.pth", 11)):
        found = find_snapshots(tmp_path, lambda line: None)
        assert found is not None
        assert found.step == step
        (tmp_path / name).unlink()
    assert choose_snapshot(tmp_path, "", "--checkpoint") == tmp_path / "checkpoint_30.pth"


def test_snapshots_that_bear_no_number(tmp_path: Path) -> None:
    """Those of earlier versions: the running one is the newest, then the largest step; what follows is newer."""
    for name, step in ((RUNNING, 8), (PREVIOUS, 7), ("checkpoint_9.pth", 9), ("checkpoint_5.pth", 5)):
        write_snapshot(tmp_path / name, state(step))
    without_times(tmp_path)
    for name in (RUNNING, "checkpoint_9.pth", PREVIOUS, "checkpoint_5.pth"):
        assert choose_snapshot(tmp_path, "", "--checkpoint") == tmp_path / name
        (tmp_path / name).rename(tmp_path / f"was_{name}")
    for name in (RUNNING, "checkpoint_9.pth", PREVIOUS):
        (tmp_path / f"was_{name}").rename(tmp_path / name)
    write_all(tmp_path, [6], keep=True)
    (tmp_path / RUNNING).unlink()
    assert choose_snapshot(tmp_path, "", "--checkpoint") == tmp_path / "checkpoint_6.pth"
