"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from util.errors import RunFailed, UsageError

SECONDS_UNTIL_VISIBLE = 60.0
"""How long what another host wrote may take to appear here; network file systems cache folders."""
_SUFFIX = ".tmp"


def why_not_written(error: Exception) -> str:
    """What kept a file from being written, in words."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT):
        return "disk full" if number == errno.ENOSPC else "disk full, as far as your quota goes"
    return str((isinstance(error, OSError) and error.strerror) or error)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to; what is written there takes the name ``path`` when the block ends well.

    A reader, or a run restarted after a kill or a power cut at any instant, finds the old file or the
    new one, whole. When the block raises, ``path`` is as it was and the temporary file is gone.

    Raises:
        OSError: the disk is full, or the folder cannot be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.uname().nodename}.{threading.get_native_id()}{_SUFFIX}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def check_usable(workdir: Path) -> None:
    """Raise UsageError where a run cannot write into its folder, or make it. Leaves nothing there."""
    places = [workdir / "logs", workdir, *workdir.parents]
    there = [place for place in places if os.path.isdir(place)]
    reason = next((f"{place} is no folder, or a link to none" for place in places if _is_in_the_way(place)), "")
    for place in () if reason else [place for place in there if place in places[:2]] or there[:1]:
        try:
            tempfile.TemporaryFile(dir=place).close()
        except OSError as error:
            reason = f"{place} cannot be written to ({why_not_written(error)})"
    if reason:
        raise UsageError(f"--workdir {workdir}: {reason}; give a folder that can be written to")


def _is_in_the_way(place: Path) -> bool:
    return os.path.lexists(place) and not os.path.isdir(place)


def flush_folder(folder: Path) -> None:
    """Put names on disk: a rename survives a power cut only after this."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def wait_until_seen(path: Path) -> None:
    """Return when what rank 0 made is seen from here. Raises RunFailed where it does not appear."""
    deadline = time.monotonic() + SECONDS_UNTIL_VISIBLE
    while not path.exists():
        if time.monotonic() >= deadline:
            host = socket.gethostname()
            raise RunFailed(f"{path} is not seen from {host}: evaluate into a folder that all nodes share")
        time.sleep(0.5)


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of processes that were killed while writing into ``folder``."""
    for leftover in folder.glob(f".*{_SUFFIX}"):
        leftover.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a text file."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file with plain containers, indented."""
    write_text(path, json.dumps(value, indent=2) + "\n")
