"""Snapshots: whole or absent, and never used when damaged."""

from pathlib import Path

import pytest
import torch

from util.errors import RunFailed, UsageError
from util.snapshot import (
    FORMAT,
    PREVIOUS,
    RUNNING,
    DamagedSnapshot,
    SnapshotWriter,
    copy_to_cpu,
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


def test_copies_do_not_follow_the_original() -> None:
    original = {"a": [torch.zeros(2)], "b": (1, "x")}
    copy = copy_to_cpu(original)
    original["a"][0].fill_(1)
    assert copy["a"][0].sum() == 0
    assert copy["b"] == (1, "x")


def test_a_snapshot_says_its_format_and_older_and_newer_ones_are_told_apart(tmp_path: Path) -> None:
    state = {"step": 3, "config": {}, "networks": {}, "emas": {}, "optimizers": {}, "scaler": {}}
    write_snapshot(tmp_path / "now.pth", state)
    assert read_snapshot(tmp_path / "now.pth")["format"] == FORMAT
    torch.save(state, tmp_path / "older.pth")
    assert read_snapshot(tmp_path / "older.pth")["step"] == 3
    write_snapshot(tmp_path / "newer.pth", {**state, "format": FORMAT + 1})
    with pytest.raises(UsageError, match="update the program"):
        read_snapshot(tmp_path / "newer.pth")
