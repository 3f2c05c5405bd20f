"""How data workers hand batches to their rank: in shared memory, whose descriptors go through a socket in TMPDIR.

Where either is not to be had, PyTorch would drop the batch, and the rank wait for it forever.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

SHARED_MEMORY = Path("/dev/shm")
BATCHES_AHEAD = 2
"""Of each worker: read, and not taken yet. It is what PyTorch's loader does by default."""
MORE_MEMORY = "give it more (in a container --ipc host, or --shm-size 8g) or lower --n_workers or --training_batch_size"
_OTHER_FOLDER = "set TMPDIR to a folder that can be written to and has a short name, such as /tmp"


class HandOverFailure(str):
    """Stands for a batch that could not be handed over: one line with the cause and the cure."""


def hand_over_failure(error: Exception) -> HandOverFailure:
    """What to say of an error of shared memory or sockets."""
    reason = " ".join(str(error).split()) or type(error).__name__
    memory = f"{memory_in_words()}: {MORE_MEMORY}"
    try:
        place = tempfile.gettempdir()
    except OSError:  # none can be written to
        place = "temporary directory"
    folder = f"sockets are made in {place}: {_OTHER_FOLDER}"
    if "AF_UNIX" in reason or place in reason:
        cure = folder
    elif "shm" in reason or "shared memory" in reason:
        cure = memory
    else:
        cure = f"{memory}; {folder}; or raise ulimit -n"
    return HandOverFailure(f"data workers cannot hand over their batches ({reason}); {cure}")


def report_failures() -> None:
    """In a worker: from now on a batch that cannot be handed over is replaced by a ``HandOverFailure``."""
    # A hook of multiprocessing for those who need it; by itself it prints a traceback and goes on.
    Queue._on_queue_feeder_error = _put_failure  # type: ignore[attr-defined]


def _put_failure(queue: Queue[Any], error: Exception, batch: tuple[int, Any]) -> None:
    queue.put((batch[0], hand_over_failure(error)))


def memory_in_words() -> str:
    """How much shared memory there is, and how much of it is free."""
    try:
        usage = shutil.disk_usage(SHARED_MEMORY)
    except OSError as error:
        return f"{SHARED_MEMORY}: {error.strerror}"
    return f"{usage.free / 2**20:.0f} of {usage.total / 2**20:.0f} MiB are free in {SHARED_MEMORY}"


def try_socket() -> None:
    """Make a socket where workers make theirs; raises OSError with what to do where that fails."""
    try:
        with tempfile.TemporaryDirectory(prefix="pymp-") as folder, socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{folder}/listener-xxxxxxxx")
    except OSError as error:
        raise OSError(hand_over_failure(error)) from None
