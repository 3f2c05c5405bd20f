"""Waiting for what has to happen, on machines of any speed."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE = 300.0
"""Seconds: far more than anything here takes on a machine ten times slower than a laptop, so only a hang is longer."""


def wait_for(
    condition: Callable[[], bool],
    what: str,
    each_time: Callable[[], None] = lambda: None,
    explain: Callable[[], str] = lambda: "",
    pause: float = 0.02,
) -> None:
    """Look until the condition holds.

    Args:
        condition: what has to hold.
        what: its name, for the message of the failure.
        each_time: called before each look; what it raises ends the waiting.
        explain: more for the message.
        pause: seconds between looks.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        each_time()
        if condition():
            return
        assert time.monotonic() < deadline, f"waited {PATIENCE:g} s for {what}\n{explain()}"
        time.sleep(pause)
