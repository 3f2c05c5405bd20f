"""The wish to stop: set by a signal, read at the next boundary.

Until a run has something to save it leaves the stop signals alone, so that they end it at once, whatever it waits for.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)  # SIGUSR2 is what submitit sends


class StopRequest:
    """True once this process has been asked to stop."""

    def __init__(self) -> None:
        self.reason = ""
        self._process = os.getpid()

    def __call__(self) -> bool:
        return bool(self.reason)

    def listen(self) -> None:
        """Take the stop signals from now on. Forked data-loader children inherit the handler and ignore them."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() == self._process:
            self.reason = signal.Signals(number).name
