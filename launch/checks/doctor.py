"""``launch doctor``: everything a run needs, tried out in under a minute before hours are spent in a queue.

It starts its ranks as main.py does, so it works, and fails, under the same launchers.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from launch.agents.agent import Agent
from launch.agents.beat import live_with_agent
from launch.options import LaunchOptions
from launch.places.topology import find_topology, rank_place
from main import parse_config
from util.config import Config
from util.errors import RunFailed, UsageError
from util.run_options import RunOptions

if TYPE_CHECKING:  # it imports torch, which the agent does not need
    from util.distributed import Distributed

TIMEOUT_SECONDS = 30.0
"""Of a collective: a network that swallows packets shows within the minute."""


def run_doctor(arguments: Sequence[str]) -> int:
    """The exit code: 0 when all is well (warnings included), 1 with a fault, 2 usage.

    Raises:
        UsageError: bad arguments.
    """
    config = parse_config(arguments)
    if not config[RunOptions].workdir:
        raise UsageError("--workdir is missing: give the folder that the run is to have")
    launch, run = config[LaunchOptions], config[RunOptions]
    config = config.with_values(
        collective_timeout=min(TIMEOUT_SECONDS, launch.collective_timeout),
        # A run may be at work in its folder: logs and reports of the doctor go below it.
        workdir=f"{run.workdir}/doctor",
        mode="train",
    )
    place = rank_place(config[LaunchOptions])
    if place is None:
        command = [sys.executable, "-m", "launch", "doctor", *arguments]
        return Agent(command, find_topology(config[LaunchOptions]), config).run()
    live_with_agent(config[LaunchOptions].rank_timeout)
    from launch.worker import run_rank

    began = time.perf_counter()
    return run_rank(config, place, lambda config, distributed, _: examine(config, distributed, began))


def examine(config: Config, distributed: Distributed, began: float) -> None:
    """All checks, as one rank of the group; rank 0 prints the table.

    Args:
        config: its workdir is the doctor's own folder below the run's.
        distributed: the group, which has met already.
        began: ``time.perf_counter()`` before it met.

    Raises:
        RunFailed: a check found a fault.
    """
    from launch.checks import machine as checks

    joined = time.perf_counter() - began
    workdir = config[RunOptions].folder
    findings = [
        checks.check_group(distributed, joined),
        checks.check_devices(distributed),
        checks.check_versions(distributed),
        checks.check_names(distributed),
        checks.check_ports(distributed),
        *checks.check_all_reduce(distributed),
        checks.check_shared_folder(distributed, workdir / "shared"),
        checks.check_disk(distributed, workdir.parent),
        checks.check_clocks(distributed),
        checks.check_data(distributed, config),
    ]
    faults = [finding.check for finding in findings if finding.verdict == checks.FAULT]
    warnings = [finding.check for finding in findings if finding.verdict == checks.WARNING]
    if distributed.is_main:
        width = max(len(finding.check) for finding in findings)
        for finding in findings:
            print(f"{finding.verdict:8} {finding.check:{width}}  {finding.text}")
        seconds = time.perf_counter() - began
        if not faults:
            note = f", with warnings: {', '.join(warnings)}" if warnings else ""
            print(f"all is well{note} ({seconds:.0f} s)", flush=True)
    distributed.barrier()
    if faults:
        raise RunFailed(f"doctor found faults: {', '.join(faults)}; see the table")
