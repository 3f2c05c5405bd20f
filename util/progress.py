"""How far a long piece of work is: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import logging
import os
import sys
import time

from tqdm import tqdm

logger = logging.getLogger(__name__)

TERMINAL_VARIABLE = "SCOREFLEET_TERMINAL_WIDTH"
"""Set for rank 0 when the agent that relays its output stands at a terminal of so many columns."""
SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Rate and remaining time of ``total`` items, of which ``done`` were there at the start.

    Args:
        description: what is being done.
        total: number of items.
        done: items finished before.
        unit: of an item, e.g. "step".
        visible: False where another rank shows it.
    """

    def __init__(self, description: str, total: int, done: int = 0, unit: str = "item", visible: bool = True) -> None:
        self.description, self.total, self.first, self.unit = description, total, done, unit
        self.visible = visible
        self.start = self.last_line = time.monotonic()
        self.bar: tqdm[None] | None = None
        width = int(os.environ.get(TERMINAL_VARIABLE, "0"))
        if visible and (width or sys.stderr.isatty()):
            self.bar = tqdm(desc=description, total=total, initial=done, unit=unit, ncols=width or None)

    def show(self, done: int, note: str = "") -> None:
        """Say that ``done`` items, the early ones included, are finished."""
        if self.bar is not None:
            if note:
                self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(done - self.bar.n)
        elif self.visible and (done >= self.total or time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES):
            self.last_line = time.monotonic()
            logger.info(self._line(done, note))

    def _rate(self, done: int) -> float:
        return (done - self.first) / max(time.monotonic() - self.start, 1e-9)

    def _line(self, done: int, note: str) -> str:
        rate = self._rate(done)
        line = f"{self.description}: {done} of {self.total} {self.unit}s ({100 * done // self.total}%), {rate:.3g}/s"
        if rate > 0 and done < self.total:
            line += f", about {(self.total - done) / rate:.0f} s left"
        return f"{line}; {note}" if note else line

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
