"""A run that another one overwrites: set aside until the new one has its first snapshot, and brought back without.

What a folder holds is moved into ``.aside`` within it, so that a folder may be a link to another disk or a mount point
and stays what it is. The files of the run's own folder go to ``.overwriting``, which takes the name ``.overwritten``
when all has been moved: whatever a kill at any instant leaves, it can be told what has to be done.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from util.errors import UsageError
from util.files import flush_folder, remove_leftovers, write_json

logger = logging.getLogger(__name__)

FOLDERS = ("checkpoints", "tensorboard", "samples", "evaluations", "diagnostics")
"""What a run writes into."""
DEPENDENT = "dequantizer"
"""A run of its own that is worth nothing without the model in whose folder it is."""
FILES = ("config.txt", "run.json", "metrics.jsonl")
PINNED = ".pinned"
"""In the folder of an evaluation, what holds its snapshots (``util/pinned.py``)."""
ASIDE, MOVING, DONE, LIST = ".aside", ".overwriting", ".overwritten", "folders.json"


def holds_overwritten(workdir: Path) -> bool:
    """Whether a run has been set aside, and the one that overwrites it has no snapshot yet."""
    return (workdir / DONE).is_dir() and not _has_snapshot(workdir)


def check_can_be_set_aside(workdir: Path) -> None:
    """Raise UsageError where a run cannot be moved out of sight."""
    for folder in _folders(workdir):
        if not os.access(folder, os.W_OK | os.X_OK):
            raise _refusal(folder, "no permission to write")


def set_aside(workdir: Path) -> None:
    """Move everything that a run has written, and nothing else, out of the sight of the one that overwrites it.

    Where a run has been set aside already, and the one that overwrote it has no snapshot, that one is deleted.

    Raises:
        UsageError: something cannot be moved; everything is as it was.
    """
    settle(workdir)
    if (workdir / DONE).is_dir():
        return _delete_successor(workdir)
    folders = [folder for folder in _folders(workdir) if any(folder.iterdir())]
    files = [workdir / name for name in FILES if os.path.lexists(workdir / name)]
    if not folders and not files:
        return None
    try:
        (workdir / MOVING).mkdir()
        write_json(workdir / MOVING / LIST, [str(folder.relative_to(workdir)) for folder in folders])
        for folder in folders:
            entries = list(folder.iterdir())
            (folder / ASIDE).mkdir()
            for entry in entries:
                entry.rename(folder / ASIDE / entry.name)
        for file in files:
            file.rename(workdir / MOVING / file.name)
        (workdir / MOVING).rename(workdir / DONE)
        flush_folder(workdir)
    except OSError as error:
        settle(workdir)
        raise _refusal(Path(error.filename or workdir), error.strerror or str(error)) from None
    return None


def bring_back(workdir: Path) -> bool:
    """Undo ``set_aside`` where the run that overwrites has no snapshot; whether there was something to undo.

    Of that run only diagnostics stay, which tell why there is none.
    """
    settle(workdir)
    if not (workdir / DONE).is_dir():
        return False
    _delete_successor(workdir)
    (workdir / DONE).rename(workdir / MOVING)
    settle(workdir)
    return True


def settle(workdir: Path) -> None:
    """End what a kill has interrupted: a move is undone, and what a snapshot has replaced is deleted."""
    if (workdir / DONE).is_dir() and _has_snapshot(workdir):
        forget(workdir)
    if not (workdir / MOVING).is_dir():
        return
    remove_leftovers(workdir / MOVING)  # of a list that a kill has cut short
    for folder in _listed(workdir / MOVING):
        _move_back(folder / ASIDE, folder)
    _move_back(workdir / MOVING, workdir)
    flush_folder(workdir)


def forget(workdir: Path) -> None:
    """Delete the run that has been set aside, if there is one: the new one has a snapshot."""
    if not (workdir / DONE).is_dir():
        return
    try:
        for folder in _listed(workdir / DONE):
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(folder / ASIDE)
            if folder.name not in FOLDERS:  # nothing will be written there soon
                with contextlib.suppress(OSError):  # not empty, a link or a mount point
                    folder.rmdir()
        shutil.rmtree(workdir / DONE)
    except OSError as error:
        logger.warning("what the overwritten run has left cannot be deleted: %s", error)


def _folders(workdir: Path) -> list[Path]:
    """Where a run has written: its own folders, those of evaluations (``--eval_folder``), and the dequantizer's."""
    patterns = [f"{place}/{name}" for place in ("*", "*/*") for name in ("results.json", "*.chunks", PINNED)]
    evaluations = {path.parent for pattern in patterns for path in workdir.glob(pattern)}
    folders = {workdir / name for name in (*FOLDERS, DEPENDENT)} | evaluations
    # What lies in one of them moves with it.
    return sorted(folder for folder in folders if folder.is_dir() and not folders & set(folder.parents))


def _has_snapshot(workdir: Path) -> bool:
    return any((workdir / "checkpoints").glob("checkpoint*.pth"))


def _listed(aside: Path) -> Iterator[Path]:
    with contextlib.suppress(FileNotFoundError):
        for name in json.loads((aside / LIST).read_text()):
            yield aside.parent / name


def _delete_successor(workdir: Path) -> None:
    """Delete what the run that overwrites has written, which has no snapshot."""
    for folder in {workdir / name for name in FOLDERS if name != "diagnostics"} | set(_listed(workdir / DONE)):
        for entry in folder.iterdir() if folder.is_dir() else ():
            if entry.name == ASIDE or folder.name == "diagnostics":
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        with contextlib.suppress(OSError):  # not empty, a link or a mount point, or not there
            folder.rmdir()
    for name in FILES:
        (workdir / name).unlink(missing_ok=True)


def _move_back(aside: Path, folder: Path) -> None:
    """Give everything its place again; ``aside`` is gone afterwards."""
    for entry in aside.iterdir() if aside.is_dir() else ():
        if entry.name != LIST:
            entry.rename(folder / entry.name)
    (aside / LIST).unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        aside.rmdir()


def _refusal(path: Path, reason: str) -> UsageError:
    return UsageError(f"--overwrite: {path} cannot be moved out of the way ({reason}); use another --workdir")
