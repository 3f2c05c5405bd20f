"""A command that is started again by itself, not by its user, goes on from the newest snapshot."""

from __future__ import annotations

import os
from collections.abc import Mapping

from util.config import Config

RESTART_VARIABLE = "SCOREFLEET_RESTART_COUNT"
COUNTS = (RESTART_VARIABLE, "TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
"""Where our agent, torchrun and Slurm (a requeued job) say how often they have started the command before."""


def after_restart(config: Config, environment: Mapping[str, str] = os.environ) -> Config:
    """The configuration for this start: the user's, unless it is a restart.

    A restart must not delete what the start before it has saved (``--overwrite``), nor go back to where that one
    began (``--checkpoint``).
    """
    counts = [environment.get(name, "0") for name in COUNTS]
    if not any(count.isdigit() and int(count) > 0 for count in counts):
        return config
    return config.with_values(overwrite=False, checkpoint="")
