"""What every command that runs on ranks begins with."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from launch.agents.agent import Agent
from launch.agents.beat import live_with_agent
from launch.agents.fingerprint import fingerprint
from launch.agents.restart import STARTER_VARIABLE
from launch.options import LaunchOptions
from launch.places import find_place
from launch.places.topology import RankPlace, Topology
from util.errors import EXIT_FAILED, RunFailed
from util.run_options import RunOptions
from util.stop import leave_at_stop_signals


def become_rank(
    command: Sequence[str], options: LaunchOptions, run: RunOptions, settings: Mapping[str, Any]
) -> RankPlace:
    """The place of this process among the ranks of the run.

    A process that no launcher has made a rank is an agent: it starts ranks, watches over them until they have ended,
    and leaves with the exit code of the run. No torch is imported on this way, which can take long on a shared disk.

    Args:
        command: of this process, for the ranks.
        options: of processes, devices and waiting.
        run: what the command does, and in which folder.
        settings: the value of every option by its flag; they have to be the same on all nodes.

    Raises:
        UsageError: environment, flags and folder do not fit together.
        SystemExit: the agent has done its work.
    """
    leave_at_stop_signals()
    try:
        place = find_place(options)
    except RunFailed as error:
        print(error, file=sys.stderr)
        raise SystemExit(EXIT_FAILED) from None
    if isinstance(place, Topology):
        os.environ.setdefault(STARTER_VARIABLE, uuid.uuid4().hex)
        raise SystemExit(Agent(command, place, options, run, fingerprint(settings)).run())
    live_with_agent(options.rank_timeout)
    return place
