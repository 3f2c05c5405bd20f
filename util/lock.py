"""One command at a time does one thing to a folder: a lock that also holds between machines.

A lock is a file in ``logs`` of the run, made by O_EXCL, which network file systems keep to as well. It says which
process holds it, and its last line counts, as a sign of life. On the owner's own machine, in the same process
namespace, the process itself tells whether it is gone; from elsewhere, only its silence does.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil

from util.errors import EXIT_FAILED, UsageError
from util.run_options import RunOptions

logger = logging.getLogger(__name__)

FOLDER = "logs"
SUFFIX = ".lock"
_UNKNOWN = "unknown"
BEAT_SECONDS = 1.0
LOOK_SECONDS = 0.2
ATTEMPTS = 20
"""To make the file where others try too."""
_COUNT = 16  # digits of the sign of life, so that a line of them is written over the one before

Starts = Mapping[str, tuple[Sequence[str], str]]
"""By what may start a command again: the names of those that did, and how often they had before."""


@dataclass(frozen=True)
class Lock:
    """What one command at a time does to a folder.

    Attributes:
        path: of the file.
        does: what its owner does, for messages.
        instead: what somebody else can do.
    """

    path: Path
    does: str
    instead: str


def training_lock(folder: Path) -> Lock:
    """That of whoever trains in the folder of a run."""
    instead = "wait for its end or stop it, or use another --workdir"
    return Lock(folder / FOLDER / f"training{SUFFIX}", "trains there", instead)


def evaluation_lock(folder: Path, eval_folder: str) -> Lock:
    """That of whoever evaluates into a folder of the run."""
    name = os.path.normpath(eval_folder)
    path = folder / FOLDER / f"evaluation {quote(name, safe=' ')[:200]}{SUFFIX}"
    return Lock(path, f"evaluates into {name}", "wait for its end or stop it, or use another --eval_folder")


def lock_of(run: RunOptions, eval_folder: str) -> Lock:
    """That of a command."""
    return training_lock(run.folder) if run.trains else evaluation_lock(run.folder, eval_folder)


@dataclass(frozen=True)
class Owner:
    """Who holds a lock.

    Attributes:
        token: of this holding alone; empty where the file does not say.
        does: what it does, for messages.
        host: its name, for messages.
        pid: of the process, in its namespace.
        machine: the same for all processes that can be looked for by their number here; empty where none can.
        started: what tells the process from a later one of the same number.
        since: when it started, in seconds since the epoch.
        starts: who may start it again.
    """

    token: str = ""
    does: str = "does not say what it does"
    host: str = "another machine"
    pid: int = 0
    machine: str = ""
    started: str = ""
    since: float = 0.0
    starts: Starts = field(default_factory=dict)

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host} (started {since}), which {self.does}"

    def is_here(self) -> bool:
        """Whether its process would be seen from this one."""
        return bool(self.machine) and self.machine == _machine()

    def is_running(self) -> bool | None:
        """Whether its process is there; None where that cannot be told from here."""
        started = _started(self.pid) if self.is_here() else _UNKNOWN
        return None if started == _UNKNOWN else started == self.started

    def precedes(self, starts: Starts) -> bool:
        """Whether those that are starting now have started this owner before, and so know that it has ended."""
        return any(
            name in starts and count != starts[name][1] and set(names) & set(starts[name][0])
            for name, (names, count) in self.starts.items()
        )


def _machine() -> str:
    """Boot and process namespace: containers of one machine may share a host name and not their processes."""
    if not sys.platform.startswith("linux"):
        return socket.gethostname()
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process started; empty where there is none."""
    try:
        process = psutil.Process(pid)
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return ""
        if sys.platform.startswith("linux"):  # in ticks since the boot: no change of the clock changes it
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        return repr(process.create_time())
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        try:
            os.kill(pid, 0)  # it may be there and hidden
        except ProcessLookupError:
            return ""
        except OSError:
            pass
        return _UNKNOWN
    except (OSError, psutil.Error, ValueError, TypeError, OverflowError):
        return _UNKNOWN


def this_process(does: str, starts: Starts) -> Owner:
    """This process as an owner; see ``Owner``."""
    pid = os.getpid()
    since = psutil.Process(pid).create_time()
    return Owner(uuid.uuid4().hex, does, socket.gethostname(), pid, _machine(), _started(pid), since, starts)


@contextlib.contextmanager
def held(lock: Lock, timeout_seconds: float, starts: Starts) -> Iterator[None]:
    """Hold a lock while the block runs. A process that loses it to another ends at once, with exit code 1.

    Args:
        lock: what is held.
        timeout_seconds: after so long without a sign of life an owner is taken for gone.
        starts: of this command. The owner that the same ones started before gets as long to end.

    Raises:
        UsageError: somebody else holds it, or the folder cannot be written to.
    """
    owner = this_process(lock.does, starts)
    try:
        lock.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _take(lock, owner, timeout_seconds)
    except OSError as error:
        raise UsageError(
            f"{lock.path}: cannot be written ({error.strerror or error}); give a --workdir that can"
        ) from None
    ended = threading.Event()
    beat = threading.Thread(target=_beat, args=(lock.path, owner, descriptor, ended), name="lock", daemon=True)
    beat.start()
    try:
        yield
    finally:
        ended.set()
        beat.join()
        _remove(lock.path, owner.token)


def refuse_where_held(folder: Path, timeout_seconds: float, instead: str) -> None:
    """Raise UsageError where another process trains or evaluates in the folder of a run."""
    for path in sorted((folder / FOLDER).glob(f"*{SUFFIX}")):
        found = _read(path)
        if found is not None and not (found[0].is_here() and found[0].pid == os.getpid()):
            other = _alive(path, timeout_seconds, {})
            if other is not None:
                raise UsageError(f"{folder} is in use by {other}; {instead}")


def clear(folder: Path) -> None:
    """Remove the locks of processes that were killed on this machine."""
    for path in (folder / FOLDER).glob(f"*{SUFFIX}"):
        found = _read(path)
        if found is not None and found[0].is_running() is False:
            _remove(path, found[0].token)


def _take(lock: Lock, owner: Owner, timeout_seconds: float) -> int:
    """Make the file, once nobody alive holds the lock; its descriptor."""
    deadline = time.monotonic() + timeout_seconds
    for _ in range(ATTEMPTS):
        with contextlib.suppress(FileExistsError):
            return _make(lock.path, owner)
        while (other := _alive(lock.path, timeout_seconds, owner.starts)) is not None:
            if not other.precedes(owner.starts) or time.monotonic() >= deadline:
                raise UsageError(f"{lock.path.parent.parent} is in use by {other}; {lock.instead}")
            time.sleep(LOOK_SECONDS)
    raise UsageError(f"{lock.path}: left by a command that is gone, and cannot be removed; delete it")


def _make(path: Path, owner: Owner) -> int:
    """Make the file that says who holds the lock; its descriptor. Raises FileExistsError where there is one."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC)
    os.fchmod(descriptor, 0o644)  # whoever shares the folder has to see who it is
    # The number of the file is in it, by which a copy of the folder holds no lock.
    text = json.dumps({**asdict(owner), "inode": os.fstat(descriptor).st_ino})
    os.write(descriptor, f"{text}\n{0:0{_COUNT}d}\n".encode())
    os.fsync(descriptor)
    return descriptor


def _alive(path: Path, timeout_seconds: float, starts: Starts) -> Owner | None:
    """The owner of a lock, once it is known to be alive; None, and the lock removed, once it is known to be gone."""
    before = None
    deadline = time.monotonic() + timeout_seconds
    while (found := _read(path)) is not None:
        owner, _ = found
        running = owner.is_running()
        if running or (running is None and before is not None and found != before):
            return owner
        if running is False or owner.precedes(starts) or time.monotonic() >= deadline:
            _remove(path, owner.token)
            return None
        if before is None:
            logger.info(
                "%s: a lock of %s: waiting for a sign of life, %g s at most (--node_timeout)",
                path.parent.parent, owner, timeout_seconds,
            )  # fmt: skip
        before = found
        time.sleep(LOOK_SECONDS)
    return None


def _read(path: Path) -> tuple[Owner, str] | None:
    """Owner and sign of life; None where nobody holds the lock."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            text, inode = file.read(), os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return None
    except OSError as error:
        return Owner(), f"{error} {path.stat().st_mtime_ns}"
    try:
        line, _, count = text.partition("\n")
        fields: dict[str, Any] = json.loads(line)
        copied = fields.pop("inode") != inode
        owner = Owner(**fields)
    except (ValueError, TypeError, KeyError, AttributeError):  # it is being made, or of another version
        return Owner(_token(path)), text
    if copied and owner.is_here():
        _remove(path, owner.token)
        return None
    return owner, count


def _remove(path: Path, token: str) -> None:
    """Remove the lock of a certain owner. Of several that try one does; what another has made meanwhile comes back."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    if _token(path) != token:
        return
    with contextlib.suppress(OSError):
        path.rename(aside)
        if _token(aside) != token:
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
        aside.unlink()


def _token(path: Path) -> str:
    """Of whoever holds the lock; empty for nobody."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads(path.read_text(encoding="utf-8").partition("\n")[0])["token"])
    return ""


def _beat(path: Path, owner: Owner, descriptor: int, ended: threading.Event) -> None:
    """Give signs of life, until the lock is released or lost. Makes the file again where somebody has deleted it."""
    at = os.fstat(descriptor).st_size - _COUNT - 1
    count = 0
    while not ended.wait(BEAT_SECONDS):
        count += 1
        with contextlib.suppress(OSError):  # a full disk, or a server that is away for a moment
            os.pwrite(descriptor, f"{count:0{_COUNT}d}\n".encode(), at)
            os.fsync(descriptor)
        with contextlib.suppress(OSError):
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                again = _make(path, owner)
                os.close(descriptor)
                descriptor = again
                at = os.fstat(descriptor).st_size - _COUNT - 1
        if _token(path) not in ("", owner.token):
            # This process stood still for so long that another one has taken over: it must not write any more.
            print(f"{path}: another process has taken over; this one ends", file=sys.stderr, flush=True)
            os._exit(EXIT_FAILED)
    os.close(descriptor)
