"""Snapshots that survive a kill at any instant, and are never loaded when damaged.

A snapshot is an ordinary ``torch.save`` file (a zip archive); its archive comment holds the step and a SHA-256 of
everything before the comment, so one file carries data and check and ``torch.load`` needs to know nothing of it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch

from util.errors import RunFailed, UsageError
from util.files import flush_folder, remove_leftovers, replacing
from util.versions import versions

logger = logging.getLogger(__name__)

FORMAT = 2
"""Of what is written: 1 did not say so itself. An older one is read as it is."""

RUNNING = "checkpoint.pth"
PREVIOUS = "checkpoint_previous.pth"
_BLOCK = 1 << 20
_END_RECORD = 22  # bytes of a zip archive's end record without its comment


def _digest(path: Path, length: int) -> str:
    """SHA-256 of the first ``length`` bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while length > 0:
            block = file.read(min(_BLOCK, length))
            if not block:
                break
            digest.update(block)
            length -= len(block)
    return digest.hexdigest()


class _HashingWriter:
    """A file for ``torch.save`` that hashes what it should hold, to compare with what the disk holds."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb")
        self.digest = hashlib.sha256()
        self.held_back = b""

    def write(self, data: bytes) -> int:
        self.file.write(data)
        # The archive's last two bytes are the comment's length, which is not covered.
        pending = self.held_back + bytes(data)
        self.digest.update(pending[:-2])
        self.held_back = pending[-2:]
        return len(data)

    def flush(self) -> None:
        self.file.flush()


def write_snapshot(path: Path, state: dict[str, Any]) -> str:
    """Write, flush, read back, and only then put in place. Whatever writes a snapshot, writes it here.

    Args:
        path: the file to replace.
        state: tensors and plain containers: ``step``, ``config``, ``networks``, ``emas``, ``optimizers``, ``scaler``.
            The number of the format and the versions of what wrote it are added.

    Returns:
        The snapshot's SHA-256.

    Raises:
        OSError: the disk is full or what it holds is not what was written; ``path`` is as it was.
    """
    with replacing(path) as temporary:
        writer = _HashingWriter(temporary)
        try:
            torch.save({"format": FORMAT, "versions": versions(), **state}, cast(IO[bytes], writer))
            checksum = writer.digest.hexdigest()
            comment = json.dumps({"step": int(state["step"]), "sha256": checksum}).encode()
            length = writer.file.tell() - 2
            writer.file.seek(length)
            writer.file.write(len(comment).to_bytes(2, "little") + comment)
            writer.file.flush()
            os.fsync(writer.file.fileno())
        finally:
            writer.file.close()
        if _digest(temporary, length) != checksum:
            raise OSError(f"{path}: the file read back differs from what was written")
    return checksum


@dataclass(frozen=True)
class SnapshotFile:
    """An intact snapshot on disk."""

    path: Path
    step: int
    sha256: str


class DamagedSnapshot(Exception):
    """The file is not what was written; the message says in which way."""


def inspect_snapshot(path: Path) -> SnapshotFile:
    """Check a snapshot without loading it.

    Raises:
        DamagedSnapshot: truncated, altered, or not one of ours.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - 1024))
        tail = file.read()
    position = tail.rfind(b"PK\x05\x06")
    if position < 0 or len(tail) < position + _END_RECORD:
        raise DamagedSnapshot("it is truncated")
    comment = tail[position + _END_RECORD :]
    try:
        note = json.loads(comment)
        step, checksum = int(note["step"]), str(note["sha256"])
    except (ValueError, KeyError, TypeError):
        raise DamagedSnapshot("its checksum is missing or damaged") from None
    if int.from_bytes(tail[position + 20 : position + 22], "little") != len(comment):
        raise DamagedSnapshot("its end record is damaged")
    if _digest(path, size - len(comment) - 2) != checksum:
        raise DamagedSnapshot("its contents do not match its checksum")
    return SnapshotFile(path, step, checksum)


def read_snapshot(path: Path) -> dict[str, Any]:
    """Load a snapshot onto the CPU; nothing in the file can run code.

    Raises:
        UsageError: not a file that torch can load as plain tensors and containers, or not a snapshot.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(f"{path}: not a snapshot that can be loaded safely ({first_line[:160]})") from None
    return checked_snapshot(state, path)


def checked_snapshot(state: Any, path: Path) -> dict[str, Any]:
    """What was loaded, if it is a snapshot of a format that is known. Raises UsageError where it is not."""
    number = state.get("format", 1) if isinstance(state, dict) else 1
    if isinstance(number, int) and number > FORMAT:
        raise UsageError(f"{path}: a snapshot of format {number}, and this program knows {FORMAT}; update the program")
    missing = [key for key in ("step", "networks", "emas") if not isinstance(state, dict) or key not in state]
    if missing:
        raise UsageError(
            f"{path}: not a Scorefleet snapshot (no '{missing[0]}'); published checkpoints are converted with "
            "python -m trainers.import_checkpoint"
        )
    return state


def find_snapshots(folder: Path, say: Callable[[str], None]) -> SnapshotFile | None:
    """The newest intact snapshot in a checkpoint folder, or None.

    That is the running one, or else the one written last: after a run was continued from an earlier step the largest
    step need not be the newest. Damaged ones are passed over with a line to ``say`` each.
    """
    found = []
    for path in folder.glob("checkpoint*.pth"):
        try:
            found.append(inspect_snapshot(path))
        except DamagedSnapshot as damage:
            say(f"{path}: {damage}; it is not used")
    return max(found, key=lambda entry: (entry.path.name == RUNNING, entry.path.stat().st_mtime), default=None)


def choose_snapshot(folder: Path, name: str, flag: str) -> Path | None:
    """The snapshot that ``flag`` names, or the newest intact one; None where there is none.

    Raises:
        UsageError: the named file is missing or damaged.
    """
    if not name:
        newest = find_snapshots(folder, logger.warning)
        return newest.path if newest is not None else None
    path = next((path for path in (folder / name, Path(name)) if path.is_file()), None)
    if path is None:
        present = ", ".join(sorted(entry.name for entry in folder.glob("*.pth"))) or "nothing"
        raise UsageError(f"{flag} {name}: no such file; {folder} holds {present}")
    try:
        inspect_snapshot(path)
    except DamagedSnapshot as damage:
        raise UsageError(f"{flag} {path}: {damage}; leave {flag} out to use the newest intact snapshot") from None
    return path


class SnapshotWriter:
    """Writes snapshots of rank 0 off the training thread.

    ``checkpoint.pth`` is the running one; the one before it stays as ``checkpoint_previous.pth``. A snapshot that is
    kept also gets the name ``checkpoint_<step>.pth``, at no cost in disk space where hard links exist.

    Args:
        folder: the checkpoint folder.
        on_saved: called in the writing thread once a snapshot is safely on disk, with its path and step.
    """

    def __init__(self, folder: Path, on_saved: Callable[[SnapshotFile], None]) -> None:
        self.folder = folder
        self.on_saved = on_saved
        self.error: Exception | None = None
        self._jobs: queue.Queue[tuple[dict[str, Any], bool] | None] = queue.Queue(maxsize=1)
        self._thread = threading.Thread(target=self._work, name="snapshot writer", daemon=True)
        self._thread.start()

    def save(self, state: dict[str, Any], keep: bool) -> float:
        """Copy the state to the CPU and hand it to the writing thread; waits while an earlier one is written.

        Returns:
            Seconds for which the caller was held up.

        Raises:
            RunFailed: an earlier snapshot could not be written.
        """
        started = time.perf_counter()
        self.wait()
        self._jobs.put((copy_to_cpu(state), keep))
        return time.perf_counter() - started

    def wait(self) -> None:
        """Return when every snapshot handed over is on disk.

        Raises:
            RunFailed: one could not be written.
        """
        self._jobs.join()
        self.raise_failure()

    def raise_failure(self) -> None:
        """Raises RunFailed if a snapshot could not be written; does not wait."""
        if self.error is not None:
            raise RunFailed(f"a snapshot could not be written: {self.error}; the last good one is untouched")

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self._write(*job)
            except Exception as error:  # a full disk (torch says RuntimeError) or anything else: the loop raises it
                self.error = error
            finally:
                self._jobs.task_done()
        self._jobs.task_done()

    def _write(self, state: dict[str, Any], keep: bool) -> None:
        running, fresh = self.folder / RUNNING, self.folder / f".{RUNNING}.new.tmp"
        remove_leftovers(self.folder)
        checksum = write_snapshot(fresh, state)
        if keep:
            _second_name(fresh, self.folder / f"checkpoint_{int(state['step'])}.pth")
        if running.exists():
            _second_name(running, self.folder / PREVIOUS)
        os.replace(fresh, running)
        flush_folder(self.folder)
        self.on_saved(SnapshotFile(running, int(state["step"]), checksum))


def _second_name(path: Path, name: Path) -> None:
    """Give ``path`` another name, replacing what had it, without a moment at which either is missing."""
    temporary = name.with_name(f".{name.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:  # a file system without hard links
        with replacing(name) as copy:
            shutil.copyfile(path, copy)
        return
    os.replace(temporary, name)


def copy_to_cpu(value: Any) -> Any:
    """The same containers with every tensor copied to the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: copy_to_cpu(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(copy_to_cpu(entry) for entry in value)
    return value
