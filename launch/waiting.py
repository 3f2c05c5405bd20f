"""Waiting for others at the start: bounded, and never silent for long."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Mapping

REMINDER_SECONDS = 5.0


class Waiting:
    """A wait that began when this was made.

    Args:
        seconds: how long it may take (--rendezvous_timeout).
        went_by: see ``went_by``; part of every reminder.
    """

    def __init__(self, seconds: float, went_by: str = "") -> None:
        self.seconds = seconds
        self._went_by = went_by
        self._began = self._reminded = time.monotonic()

    @property
    def remaining(self) -> float:
        """Seconds; not below 0."""
        return max(0.0, self._began + self.seconds - time.monotonic())

    @property
    def until_reminder(self) -> float:
        """Seconds until the next reminder is due, or time is up; not below 0."""
        return max(0.0, min(self.remaining, self._reminded + REMINDER_SECONDS - time.monotonic()))

    def remind(self, what: str) -> None:
        """Say what this process waits for, if it has not been said for a while."""
        if time.monotonic() >= self._reminded + REMINDER_SECONDS:
            self.say(what)

    def say(self, what: str) -> None:
        """Say it now."""
        self._reminded = time.monotonic()
        with contextlib.suppress(OSError):  # the console may be gone
            print(self.line(f"{what} ({self.remaining:.0f} s left)"), file=sys.stderr, flush=True)

    def line(self, text: str) -> str:
        """The text, and what this process went by when it began to wait."""
        return f"{text}; {self._went_by}" if self._went_by else text


def went_by(launcher: str, environment: Mapping[str, str], names: Iterable[str]) -> str:
    """What a process took for the word of its launcher, and how to be rid of it where it is an old one.

    Args:
        launcher: by name.
        environment: of this process.
        names: of the variables.
    """
    found = [name for name in names if name in environment]
    values = ", ".join(f"{name}={environment[name]}" for name in found)
    return f"it goes by {values}; if no {launcher} has just set these, `unset {' '.join(found)}` and start again"
