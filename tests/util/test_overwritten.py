"""A run that is set aside: moved, brought back and deleted, with a kill at every instant in between."""

from __future__ import annotations

import os
import pathlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.system.folders import contents
from util import overwritten
from util.errors import UsageError
from util.overwritten import bring_back, check_can_be_set_aside, forget, holds_overwritten, set_aside, settle

HERS = {"notes.txt": "mine", "statistics/reference.npz": "mine", "logs/rank_0000.log": "what ranks say"}
OURS = {
    "config.txt": "seed = 0", "run.json": "{}", "metrics.jsonl": "{}", "checkpoints/checkpoint.pth": "1",
    "checkpoints/.litter.tmp": "", "evaluations/step_00000004/results.json": "{}", "samples/samples_00000004.png": "1",
    "eval/results.json": "{}", "eval/deeper/results.json": "{}", "of/mine/results.json": "{}",
    "other/nll.chunks/0.npz": "1", "dequantizer/config.txt": "", "dequantizer/checkpoints/checkpoint.pth": "1",
    "diagnostics/step_3_rank_0.pt": "old",
}  # fmt: skip
NEW = {
    "config.txt": "seed = 1", "run.json": "{}", "metrics.jsonl": "", "evaluations/step_00000001/loss.npz": "1",
    "diagnostics/step_2_rank_0.pt": "new", "tensorboard/events": "1",
}  # fmt: skip


class Killed(BaseException):
    pass


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """A run with a linked folder, a link in a folder, and its owner's files beside."""
    workdir = tmp_path / "run"
    write(workdir, HERS | OURS)
    (workdir / "checkpoints").rename(tmp_path / "elsewhere")
    (workdir / "checkpoints").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "kept.pth").write_text("not ours")
    (workdir / "checkpoints" / "checkpoint_4.pth").symlink_to(tmp_path / "far" / "kept.pth")
    return workdir


def killed_at(n: int, monkeypatch: pytest.MonkeyPatch, act: Callable[[], Any]) -> bool:
    """Run ``act``, killed at the n-th change of the disk; whether it ended before."""
    left = n

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*arguments: Any, **others: Any) -> Any:
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            return change(*arguments, **others)

        return instead

    with monkeypatch.context() as patched:
        changes = [(pathlib.Path, name) for name in ("rename", "mkdir", "rmdir", "unlink")]
        for owner, name in (*changes, (os, "replace"), (shutil, "rmtree")):
            patched.setattr(owner, name, counted(getattr(owner, name)))
        try:
            act()
        except Killed:
            return False
    return True


def every_kill(workdir: Path, monkeypatch: pytest.MonkeyPatch, act: Callable[[Path], Any]) -> list[Path]:
    """Copies of the folder in which ``act`` was killed at each of its instants, and one in which it was not."""
    copies: list[Path] = []
    ended = False
    while not ended:
        # The links point to folders of the copy's own.
        place = workdir.parent / f"copy {act.__name__} {len(copies)}"
        shutil.copytree(workdir.parent / "elsewhere", place / "elsewhere", symlinks=True)
        shutil.copytree(workdir, place / "run", symlinks=True)
        (place / "run" / "checkpoints").unlink()
        (place / "run" / "checkpoints").symlink_to(place / "elsewhere")
        ended = killed_at(len(copies), monkeypatch, lambda copy=place / "run": act(copy))
        copies.append(place / "run")
    return copies


def same(workdir: Path, before: dict[str, Any], besides: tuple[str, ...] = ()) -> None:
    found = {name: entry for name, entry in contents(workdir, ()).items() if name not in besides}
    assert {**found, "checkpoints": "link"} == {**before, "checkpoints": "link"}


def test_set_aside_and_brought_back_whenever_it_is_killed(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(workdir, ())
    copies = every_kill(workdir, monkeypatch, set_aside)
    assert len(copies) > 20
    for copy in copies[:-1]:
        settle(copy)  # as every command does first
        assert not bring_back(copy)
        same(copy, before)
    aside = copies[-1]
    assert holds_overwritten(aside)
    assert not any((aside / name).exists() for name in OURS)
    assert all((aside / name).read_text() == text for name, text in HERS.items())
    write(aside, NEW)
    for copy in every_kill(aside, monkeypatch, bring_back):
        bring_back(copy)
        assert not holds_overwritten(copy)
        # What tells why there is no snapshot stays.
        same(copy, before, besides=("diagnostics/step_2_rank_0.pt",))


def test_the_first_snapshot_ends_it_whenever_it_is_killed(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_aside(workdir)
    write(workdir, {**NEW, "checkpoints/checkpoint.pth": "new"})
    assert not holds_overwritten(workdir)
    for copy in every_kill(workdir, monkeypatch, forget):
        assert not bring_back(copy)  # which deletes what is left
        files = {name for name, entry in contents(copy, ()).items() if isinstance(entry, bytes)}
        assert files == {*NEW, *HERS, "checkpoints/checkpoint.pth"}
        assert (copy / "checkpoints").is_symlink()
        assert not (copy / "eval").exists()
    assert (workdir.parent / "far" / "kept.pth").read_text() == "not ours"


def test_a_second_run_that_overwrites_deletes_only_the_first(workdir: Path) -> None:
    before = contents(workdir, ())
    set_aside(workdir)
    write(workdir, NEW)
    set_aside(workdir)
    assert not any((workdir / name).exists() for name in NEW if "diagnostics" not in name)
    assert bring_back(workdir)
    same(workdir, before, besides=("diagnostics/step_2_rank_0.pt",))
    assert not bring_back(workdir)


def test_what_cannot_be_moved_is_refused_with_everything_in_its_place(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(workdir, ())
    rename = pathlib.Path.rename

    def busy(path: Path, target: Path) -> Path:
        if path.name == "samples_00000004.png" and ".aside" in str(target):
            raise OSError(16, "Device or resource busy", str(path))
        return rename(path, target)

    monkeypatch.setattr(pathlib.Path, "rename", busy)
    with pytest.raises(UsageError, match=r"samples_00000004\.png cannot be moved out of the way \(Device or resource"):
        set_aside(workdir)
    same(workdir, before)


def test_no_permission_is_seen_before(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_can_be_set_aside(workdir)
    monkeypatch.setattr(overwritten.os, "access", lambda path, mode: path.name != "evaluations")
    with pytest.raises(UsageError, match=r"evaluations cannot be moved out of the way \(no permission to write\)"):
        check_can_be_set_aside(workdir)


def test_nothing_to_set_aside(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        check_can_be_set_aside(folder)
        set_aside(folder)
        assert not bring_back(folder)
        assert not holds_overwritten(folder)
    assert list(tmp_path.iterdir()) == []
