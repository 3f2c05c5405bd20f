"""Snapshots that survive a kill at any instant, and are never loaded when damaged.

A snapshot is an ordinary ``torch.save`` file (a zip archive); its archive comment holds the step, which one of its run
it is, and a SHA-256 of everything before the comment, so one file carries data and check and ``torch.load`` needs to
know nothing of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import queue
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import torch

from util.errors import RunFailed, UsageError
from util.files import flush_folder, remove_leftovers, replacing, why_not_written
from util.host_copy import HostCopy
from util.versions import versions

logger = logging.getLogger(__name__)

FORMAT = 2
"""Of what is written: 1 did not say so itself. An older one is read as it is."""

RUNNING = "checkpoint.pth"
PREVIOUS = "checkpoint_previous.pth"
_BLOCK = 1 << 20
_END_RECORD = 22  # bytes of a zip archive's end record without its comment


def _digest(file: IO[bytes], length: int) -> str:
    """SHA-256 of the first ``length`` bytes."""
    digest = hashlib.sha256()
    file.seek(0)
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
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        # The archive's last two bytes are the comment's length, which is not covered.
        view = memoryview(data)
        pending = self.held_back + bytes(view[-2:])
        if len(view) > 2:
            self.digest.update(self.held_back)
            self.digest.update(view[:-2])
        else:
            self.digest.update(pending[:-2])
        self.held_back = pending[-2:]
        return len(view)

    def flush(self) -> None:
        self.file.flush()


def write_snapshot(path: Path, state: dict[str, Any], number: int = 0, read_back: bool = True) -> str:
    """Write, flush, read back, and only then put in place. Whatever writes a snapshot, writes it here.

    Args:
        path: the file to replace.
        state: tensors and plain containers: ``step``, ``config``, ``networks``, ``emas``, ``optimizers``, ``scaler``.
            The number of the format and the versions of what wrote it are added.
        number: greater than that of every snapshot that the run has written before; 0 of one that is of no run.
        read_back: read the file once it is flushed, and compare. Without, what the file system lost or altered is
            noticed when the snapshot is read.

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
            note = {"step": int(state["step"]), "sha256": checksum, **({"number": number} if number else {})}
            comment = json.dumps(note).encode()
            length = writer.file.tell() - 2
            writer.file.seek(length)
            writer.file.write(len(comment).to_bytes(2, "little") + comment)
            writer.file.flush()
            os.fsync(writer.file.fileno())
        except RuntimeError:  # torch hides what kept it from writing
            if writer.error is not None:
                raise writer.error from None
            raise
        finally:
            with contextlib.suppress(OSError):  # of what a full disk has left in the buffer
                writer.file.close()
        if read_back:
            with temporary.open("rb") as file:
                if _digest(file, length) != checksum:
                    raise OSError(f"{path}: the file read back differs from what was written")
    return checksum


@dataclass(frozen=True)
class SnapshotFile:
    """A snapshot on disk, by what its comment says.

    Attributes:
        path: the file.
        step: completed steps.
        sha256: of its contents.
        number: which one of its run it is, from 1; 0 where it does not say.
        length: bytes that the checksum is of.
    """

    path: Path
    step: int
    sha256: str
    number: int = 0
    length: int = 0

    def age(self) -> tuple[int, bool, int]:
        """Sorts from the oldest to the newest.

        A run that was continued from an earlier step, with ``--checkpoint``, has later snapshots of smaller steps, and
        a copy of a run may have lost the times of its files. So the number counts; where there is none, the running
        one is the newest, and of the others that of the largest step.
        """
        return self.number, self.path.name == RUNNING, self.step


class DamagedSnapshot(Exception):
    """The file is not what was written, or cannot be read; the message says in which way."""


def inspect_snapshot(path: Path) -> SnapshotFile:
    """Check a snapshot without loading it.

    Raises:
        DamagedSnapshot: truncated, altered, not one of ours, not a file, or not to be read.
    """
    with _opened(path) as file:
        found = _read_comment(path, file)
        if _digest(file, found.length) != found.sha256:
            raise DamagedSnapshot("its contents do not match its checksum")
    return found


def _read_snapshot_comment(path: Path) -> SnapshotFile:
    """What a snapshot says of itself; raises DamagedSnapshot where it says nothing."""
    with _opened(path) as file:
        return _read_comment(path, file)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The file, open to read; DamagedSnapshot for whatever is wrong with it. Does not wait for a pipe's other end."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise DamagedSnapshot("it is no file")
            yield file
    except IsADirectoryError:
        raise DamagedSnapshot("it is a folder") from None
    except FileNotFoundError:
        raise DamagedSnapshot("it is a link to nothing" if path.is_symlink() else "it is gone") from None
    except OSError as error:
        raise DamagedSnapshot(f"it cannot be read ({error.strerror or error})") from None


def _read_comment(path: Path, file: IO[bytes]) -> SnapshotFile:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 1024))
    tail = file.read()
    position = tail.rfind(b"PK\x05\x06")
    if position < 0 or len(tail) < position + _END_RECORD:
        raise DamagedSnapshot("it is truncated")
    comment = tail[position + _END_RECORD :]
    try:
        note = json.loads(comment)
        step, checksum, number = note["step"], note["sha256"], note.get("number", 0)
        known = note.keys() <= {"step", "sha256", "number"} and isinstance(checksum, str)
        if not known or not all(type(value) is int and 0 <= value < 1 << 63 for value in (step, number)):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DamagedSnapshot("its checksum is missing or damaged") from None
    if int.from_bytes(tail[position + 20 : position + 22], "little") != len(comment):
        raise DamagedSnapshot("its end record is damaged")
    return SnapshotFile(path, step, checksum, number, size - len(comment) - 2)


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
    """The newest intact snapshot in a checkpoint folder, or None; see ``SnapshotFile.age``.

    What cannot be used, whatever it is, is passed over with a line to ``say``.
    """
    found = []
    for path in sorted(folder.glob("checkpoint*.pth")):
        try:
            found.append(_read_snapshot_comment(path))
        except DamagedSnapshot as damage:
            say(f"{path}: {damage}; it is not used")
    for candidate in sorted(found, key=SnapshotFile.age, reverse=True):
        try:
            return inspect_snapshot(candidate.path)
        except DamagedSnapshot as damage:
            say(f"{candidate.path}: {damage}; it is not used")
    return None


def kept_snapshots(folder: Path, say: Callable[[Path, str], None]) -> list[SnapshotFile]:
    """The snapshots that a run keeps, by their steps, as they describe themselves: their contents are not checked.

    Args:
        folder: the checkpoint folder; it need not be there yet.
        say: told of a file that is none, and why.
    """
    found = []
    for path in folder.glob("checkpoint_*.pth"):
        if path.stem.removeprefix("checkpoint_").isdigit():
            try:
                found.append(_read_snapshot_comment(path))
            except DamagedSnapshot as problem:
                say(path, str(problem))
    return sorted(found, key=lambda snapshot: snapshot.step)


def choose_snapshot(folder: Path, name: str, flag: str) -> Path | None:
    """The snapshot that ``flag`` names, or the newest intact one; None where there is none.

    Raises:
        UsageError: the named file is missing or damaged.
    """
    if not name:
        newest = find_snapshots(folder, logger.warning)
        return newest.path if newest is not None else None
    path = next((path for path in (folder / name, Path(name)) if os.path.lexists(path)), None)
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
        read_back: see ``write_snapshot``.
    """

    def __init__(self, folder: Path, on_saved: Callable[[SnapshotFile], None], read_back: bool = True) -> None:
        self.folder = folder
        self.on_saved = on_saved
        self.read_back = read_back
        self.error: Exception | None = None
        self._number = 0
        self._copy = HostCopy()
        self._prepared = threading.Event()
        self._prepared.set()
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue(maxsize=1)
        self._thread = threading.Thread(target=self._work, name="snapshot writer", daemon=True)
        self._thread.start()

    def prepare(self, state: dict[str, Any]) -> None:
        """Take the memory for copies of such states, in the writing thread, before the first one is saved."""
        self._prepared.clear()
        self._jobs.put(partial(self._prepare, state))

    def save(self, state: dict[str, Any], keep: bool) -> float:
        """Copy the state to the CPU and hand it to the writing thread; waits while an earlier one is written.

        Returns:
            Seconds for which the caller was held up; without those of a preparation, of which there is one in a run.

        Raises:
            RunFailed: an earlier snapshot could not be written.
        """
        self._prepared.wait()
        started = time.perf_counter()
        self.wait()
        self._jobs.put(partial(self._write, self._copy(state), keep))
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
            why = why_not_written(self.error)
            raise RunFailed(f"{self.folder}: a snapshot could not be written: {why}; the last good one is untouched")

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception as error:  # a full disk or anything else: the loop raises it
                self.error = error
            finally:
                self._jobs.task_done()
        self._jobs.task_done()

    def _prepare(self, state: dict[str, Any]) -> None:
        try:
            self._copy.reserve(state)
        finally:
            self._prepared.set()

    def _write(self, state: dict[str, Any], keep: bool) -> None:
        self._copy.wait()
        running, fresh = self.folder / RUNNING, self.folder / f".{RUNNING}.new.tmp"
        remove_leftovers(self.folder)
        self._number = (self._number or _largest_number(self.folder)) + 1
        checksum = write_snapshot(fresh, state, self._number, self.read_back)
        if keep:
            _second_name(fresh, self.folder / f"checkpoint_{int(state['step'])}.pth")
        if running.is_file():
            _second_name(running, self.folder / PREVIOUS)
        _make_way(running)
        os.replace(fresh, running)
        flush_folder(self.folder)
        self.on_saved(SnapshotFile(running, int(state["step"]), checksum, self._number))


def _largest_number(folder: Path) -> int:
    """Of the snapshots in a folder, damaged ones included as far as they say so."""
    numbers = [0]
    for path in folder.glob("checkpoint*.pth"):
        with contextlib.suppress(DamagedSnapshot):
            numbers.append(_read_snapshot_comment(path).number)
    return max(numbers)


def _make_way(path: Path) -> None:
    """A folder that has the name of a snapshot gets another one."""
    if path.is_dir() and not path.is_symlink():
        other = path.with_name(f"{path.name}.folder_{time.time_ns()}")
        path.rename(other)
        logger.warning("%s: a folder has the name of a snapshot; it is now %s", path, other.name)


def _second_name(path: Path, name: Path) -> None:
    """Give ``path`` another name, replacing what had it, without a moment at which either is missing."""
    temporary = name.with_name(f".{name.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    _make_way(name)
    try:
        os.link(path, temporary)
    except OSError:  # a file system without hard links
        with replacing(name) as copy:
            shutil.copyfile(path, copy)
        return
    os.replace(temporary, name)
