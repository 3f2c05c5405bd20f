"""Commands on ranks that belong to no run: a folder beside what they write holds logs and finished pieces meanwhile."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.agents.beat import AGENT_VARIABLE
from launch.options import LaunchOptions
from launch.start import become_rank
from util.errors import EXIT_FINISHED, EXIT_USAGE
from util.run_options import RunOptions

if TYPE_CHECKING:  # it imports torch, which the agent does not need
    from util.distributed import Distributed
    from util.stop import StopRequest


def run_on_ranks(
    module: str,
    arguments: Sequence[str],
    options: LaunchOptions,
    settings: Mapping[str, Any],
    folder: Path,
    work: Callable[[Distributed, StopRequest], None],
) -> int:
    """Do ``work`` on the ranks that this process starts or is one of, under every launcher that main.py knows.

    Args:
        module: that ``python -m`` runs, for the ranks.
        arguments: of the command.
        options: of processes, devices and waiting.
        settings: the value of every option by its flag; they have to be the same on all nodes.
        folder: shared by all ranks. It is removed when the work is done, and stays when it was stopped or failed, so
            that the same command goes on. A command that is refused leaves none behind.
        work: what every rank does, given its place and the wish to stop.

    Returns:
        The exit code: 0, 1, 2 or 75.

    Raises:
        UsageError: environment and flags do not fit together.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    code = EXIT_USAGE
    try:
        run = RunOptions(mode="eval", workdir=str(folder.absolute()))
        place = become_rank([sys.executable, "-m", module, *arguments], options, run, settings)
    except SystemExit as ended:
        code = int(ended.code or EXIT_FINISHED)
        return code
    else:
        code = -1
    finally:
        if code == EXIT_FINISHED or (is_new and code == EXIT_USAGE):
            shutil.rmtree(folder, ignore_errors=True)

    from launch.worker import run_rank  # torch takes seconds, and the agent does not need it

    def work_and_tidy(distributed: Distributed, stop: StopRequest) -> None:
        work(distributed, stop)
        distributed.barrier()
        if distributed.is_main and AGENT_VARIABLE not in os.environ:  # else the agent does, whose logs are in there
            shutil.rmtree(folder, ignore_errors=True)

    return run_rank(options, place, work_and_tidy)
