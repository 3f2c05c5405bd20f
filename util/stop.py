"""The wish to stop: set by a signal, read at the next boundary.

A process that has nothing to save yet, and nobody to tell, leaves at once (``leave_at_stop_signals``), whatever it
waits for. From the first thing to save on it takes note, and stops where it can (``StopRequest.listen``).
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType

from util.errors import EXIT_PREEMPTED

# SIGUSR2 is what submitit sends, SIGHUP comes when a terminal is closed.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
Handler = Callable[[int, FrameType | None], None]
_wakeup: list[socket.socket] = []
"""While ``leave_at_stop_signals`` holds: both ends of what the interpreter writes the numbers of signals to."""
_masks: list[set[int]] = []
"""During a fork: the signals that were blocked before it."""


def on_stop_signal(handler: Handler) -> None:
    """Have every stop signal call this from now on, instead of what it did before.

    SIGHUP stays ignored where it is ignored, as by nohup. For the main thread alone.
    """
    for number in STOP_SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)
    if handler is not _leave:
        _end_watch()


def leave_at_stop_signals() -> None:
    """Have every stop signal end this process at once, with exit code 75, until ``on_stop_signal`` says otherwise.

    Python calls a handler only between two instructions of its own. So a thread listens too: it acts while the main
    thread looks up a name, or waits in a library for others, as long as that lets other threads run. Processes that are
    forked meanwhile have the signals' default actions. For the main thread alone.
    """
    if not _wakeup:
        reading, writing = socket.socketpair()
        writing.setblocking(False)
        _wakeup.extend((reading, writing))
        signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=_watch, args=(reading,), name="stop signals", daemon=True).start()
    on_stop_signal(_leave)


def _leave(_number: int, _frame: FrameType | None) -> None:
    os._exit(EXIT_PREEMPTED)


def _watch(reading: socket.socket) -> None:
    while arrived := reading.recv(1):
        if arrived[0] in STOP_SIGNALS and signal.getsignal(arrived[0]) is _leave:
            _leave(arrived[0], None)
    reading.close()


def _end_watch() -> None:
    if _wakeup:
        signal.set_wakeup_fd(-1)
        _wakeup[1].close()  # the thread reads to the end, closes the other one, and ends
        _wakeup.clear()


def _before_fork() -> None:
    """What arrives for a forked process has to wait until it has put aside the handlers that it inherits."""
    _masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS if _wakeup else ()))


def _after_fork_in_parent() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.pop())


def _after_fork_in_child() -> None:
    if _wakeup:
        signal.set_wakeup_fd(-1)
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is _leave:
                signal.signal(number, signal.SIG_DFL)
        for end in _wakeup:
            end.close()
        _wakeup.clear()
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.pop())


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


class StopRequest:
    """True once this process has been asked to stop."""

    def __init__(self) -> None:
        self.reason = ""
        self._process = os.getpid()

    def __call__(self) -> bool:
        return bool(self.reason)

    def listen(self) -> None:
        """Take the stop signals from now on. Forked data-loader children inherit the handler and ignore them."""
        on_stop_signal(self._receive)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() == self._process:
            self.reason = signal.Signals(number).name
