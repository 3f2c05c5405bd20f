"""A snapshot that is held fast while it is evaluated, whatever becomes of it in the folder of its run.

It gets a second name in the folder of the evaluation, or is copied there where that is on another file system. All
ranks read it there, and what is recorded of it is said of what stands there. An evaluation that was interrupted goes on
with it, so it is let go only when the evaluation has finished.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from util.errors import UsageError
from util.files import replacing, write_json
from util.overwritten import PINNED
from util.snapshot import DamagedSnapshot, inspect_snapshot

logger = logging.getLogger(__name__)

ATTEMPTS = 5
"""To get hold of a snapshot that is being replaced."""


@dataclass(frozen=True)
class Pinned:
    """A snapshot to be read.

    Attributes:
        path: where to read it.
        source: where it was found.
        step: completed steps.
        sha256: of what stands at ``path``.
    """

    path: Path
    source: Path
    step: int
    sha256: str


Hold = Callable[[str, str, Callable[[], Path]], Pinned]
"""From what a snapshot is to an evaluation, the name it was asked for by and what chooses it, to what is to be read."""


def in_place(_role: str, _wanted: str, choose: Callable[[], Path]) -> Pinned:
    """The snapshot where it is, for those who can be sure that it stays."""
    path = choose()
    found = inspect_snapshot(path)
    return Pinned(path, path, found.step, found.sha256)


class Pins:
    """The snapshots of one evaluation; used by rank 0.

    Args:
        folder: of the evaluation, on a file system that all ranks share.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / PINNED
        self._before: dict[Path, str] = {}
        self._made: list[Path] = []

    def hold(self, role: str, wanted: str, choose: Callable[[], Path]) -> Pinned:
        """Hold the snapshot fast that ``choose`` names, or that an interrupted evaluation has held.

        Args:
            role: what the snapshot is to the evaluation.
            wanted: the name that the snapshot was asked for by; empty for the newest. What was held under another name
                does not count.
            choose: gives the path of an intact snapshot. Raises UsageError where there is none.

        Raises:
            UsageError: as ``choose``; or the snapshot was damaged just now.
            OSError: it can be neither linked nor copied.
        """
        held = self._held(role, wanted)
        if held is not None:
            logger.info(
                "this evaluation began with %s of step %d, and goes on with it; for another snapshot delete %s",
                held.source, held.step, self.folder,
            )  # fmt: skip
            return held
        damage = ""
        for _ in range(ATTEMPTS):
            source = choose()
            path = self.folder / f"{role}-{uuid.uuid4().hex}.pth"
            self._make_folder()
            self._made.append(path)
            with contextlib.suppress(FileNotFoundError):
                _link_or_copy(source, path)
            try:
                found = inspect_snapshot(path)
            except DamagedSnapshot as error:
                damage = str(error)
                path.unlink(missing_ok=True)
                continue
            record = self.folder / f"{role}.json"
            with contextlib.suppress(OSError):
                self._before[record] = record.read_text()
            self._made.append(record)
            write_json(record, {"wanted": wanted, "source": str(source), "file": path.name})
            return Pinned(path, source, found.step, found.sha256)
        raise UsageError(f"{source}: {damage}; it is being changed all the time, name another one")

    def _held(self, role: str, wanted: str) -> Pinned | None:
        """What an interrupted evaluation has held under that name."""
        try:
            record = json.loads((self.folder / f"{role}.json").read_text())
            path = self.folder / record["file"]
            if record["wanted"] != wanted or path.parent != self.folder:
                return None
            found = inspect_snapshot(path)
            return Pinned(path, Path(record["source"]), found.step, found.sha256)
        except (OSError, ValueError, KeyError, TypeError, DamagedSnapshot):
            return None

    def _make_folder(self) -> None:
        missing = []
        place = self.folder
        while not place.exists():
            missing.append(place)
            place = place.parent
        self.folder.mkdir(parents=True, exist_ok=True)
        self._made[:0] = reversed(missing)

    def undo(self) -> None:
        """Have everything as it was: the command has been refused."""
        for path in reversed(self._made):
            if path in self._before:
                path.write_text(self._before[path])
            elif path.is_dir():
                with contextlib.suppress(OSError):  # not empty any more
                    path.rmdir()
            else:
                path.unlink(missing_ok=True)

    def tidy(self) -> None:
        """Delete what starts that were killed have left, but not what ``undo`` needs."""
        records = [*self._before.values()]
        for path in self.folder.glob("*.json"):
            with contextlib.suppress(OSError):
                records.append(path.read_text())
        kept = set()
        for record in records:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                kept.add(json.loads(record)["file"])
        for path in self.folder.glob("*"):
            if path.suffix != ".json" and path.name not in kept:
                path.unlink(missing_ok=True)

    def let_go(self) -> None:
        """Delete all of them: the evaluation has finished."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _link_or_copy(source: Path, path: Path) -> None:
    try:
        os.link(os.path.realpath(source), path)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, one without hard links, or a file of somebody else
        with replacing(path) as copy:
            shutil.copyfile(source, copy)
