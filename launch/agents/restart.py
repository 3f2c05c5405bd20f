"""A command that is started again by itself, not by its user, goes on from the newest snapshot."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

RESTART_VARIABLE = "SCOREFLEET_RESTART_COUNT"
COUNTS = (RESTART_VARIABLE, "TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
"""Where our agent, torchrun and Slurm (a requeued job) say how often they have started the command before."""
OF_RESTART: dict[str, Any] = {"overwrite": False, "checkpoint": ""}
"""The settings of a restart, whatever its command says: it must not delete what the start before it has saved, nor go
back to where that one began."""


def is_restart(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this command has been started before."""
    counts = [environment.get(name, "0") for name in COUNTS]
    return any(count.isdigit() and int(count) > 0 for count in counts)
