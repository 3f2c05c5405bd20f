"""Processes that read data for another one: they leave signals to it, and end with it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

# What asks a run to stop is answered by the rank, at a step boundary, and not by its workers.
_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
_SECONDS_BETWEEN_LOOKS = 0.5


def _exit_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        arrived = signal.sigtimedwait(_SIGNALS, _SECONDS_BETWEEN_LOOKS)
        # Of all senders only the rank itself may end its worker, as it does when it exits.
        if arrived is not None and arrived.si_signo == signal.SIGTERM and arrived.si_pid == parent:
            break
    os._exit(0)


def begin_work(parent: int) -> None:
    """To be called first by a worker, with the process that forked it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()


@contextlib.contextmanager
def without_signals() -> Iterator[None]:
    """Workers that are forked in this block inherit its mask, so that there is no instant at which a signal could end
    one."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
