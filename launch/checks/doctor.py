"""``launch doctor``: everything a run needs, tried out in under a minute before hours are spent in a queue.

It starts its ranks as main.py does, so it works, and fails, under the same launchers.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from launch.command import Command, resolve
from launch.options import LaunchOptions
from launch.start import become_rank
from util.data.options import DataOptions
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
    command = resolve(arguments)
    options, run = command[LaunchOptions], command[RunOptions]
    if not run.workdir:
        raise UsageError("--workdir is missing: give the folder that the run is to have")
    options = replace(options, collective_timeout=min(TIMEOUT_SECONDS, options.collective_timeout))
    # A run may be at work in its folder: logs and reports of the doctor go below it.
    run = replace(run, workdir=f"{run.workdir}/doctor", mode="train")
    place = become_rank([sys.executable, "-m", "launch", "doctor", *arguments], options, run, command.settings)
    from launch.worker import run_rank

    began = time.perf_counter()
    return run_rank(options, place, lambda distributed, _: examine(command, run.folder, distributed, began))


def examine(command: Command, folder: Path, distributed: Distributed, began: float) -> None:
    """All checks, as one rank of the group; rank 0 prints the table.

    Args:
        command: of the run.
        folder: the doctor's own, below the run's.
        distributed: the group, which has met already.
        began: ``time.perf_counter()`` before it met.

    Raises:
        RunFailed: a check found a fault.
    """
    from launch.checks import machine as checks

    joined = time.perf_counter() - began
    findings = [
        checks.check_group(distributed, joined),
        checks.check_devices(distributed),
        checks.check_versions(distributed),
        checks.check_names(distributed),
        checks.check_ports(distributed),
        *checks.check_all_reduce(distributed),
        checks.check_shared_folder(distributed, folder / "shared"),
        checks.check_disk(distributed, folder.parent),
        checks.check_clocks(distributed),
        checks.check_data_workers(distributed, command[DataOptions], int(command.settings["training_batch_size"])),
        checks.check_data(distributed, command[DataOptions], command[RunOptions]),
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
