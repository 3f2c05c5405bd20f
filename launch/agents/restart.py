"""A command that is started again by itself, not by its user, goes on from the newest snapshot.

Unless no start before has come as far as its first step: then nothing has been overwritten yet, and the run in the
folder is still the one that the command is to overwrite.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from util.run_file import read_run_file

if TYPE_CHECKING:
    from util.distributed import Distributed

RESTART_VARIABLE = "SCOREFLEET_RESTART_COUNT"
STARTER_VARIABLE = "SCOREFLEET_STARTER"
"""What our agent, or the task of a job, is called that starts the command once or again."""
COUNTS = (RESTART_VARIABLE, "TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
"""Where our agent, torchrun and Slurm (a requeued job) say how often they have started the command before."""
OF_RESTART: dict[str, Any] = {"overwrite": False, "checkpoint": ""}
"""The settings of a restart, whatever its command says: it must not delete what the start before it has saved, nor go
back to where that one began."""


def starters(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Who may start this process again, by the variable that says how often: what is the same at every start."""
    found = {RESTART_VARIABLE: environment.get(STARTER_VARIABLE)}
    found["SLURM_RESTART_COUNT"] = environment.get("SLURM_JOB_ID")
    if "TORCHELASTIC_RESTART_COUNT" in environment and (parent := psutil.Process().parent()) is not None:
        found["TORCHELASTIC_RESTART_COUNT"] = f"{socket.gethostname()} {parent.pid} {parent.create_time()}"
    return {name: value for name, value in found.items() if value}


def starters_of_all(ranks: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """The ``starters`` of every rank together, because each node has its own; they stand in ``run.json``."""
    return {name: sorted({rank[name] for rank in ranks if name in rank}) for name in COUNTS}


def of_restart(
    folder: Path, now: Mapping[str, Sequence[str]], environment: Mapping[str, str] = os.environ
) -> dict[str, Any]:
    """The settings that a restart has instead of its command's; none where no start before has begun the run.

    Ranks may see another ``run.json``: one of them decides for all.

    Args:
        folder: of the run.
        now: ``starters_of_all``. One of those that began the run is enough: a launcher may replace a node.
        environment: says how often the command has been started before.
    """
    counts = {name: environment.get(name, "0") for name in COUNTS}
    again = [name for name, count in counts.items() if count.isdigit() and int(count) > 0]
    run = read_run_file(folder)
    # A run that began when run.json did not say by whom began by this command.
    before = run.get("starters", now) if run else {}
    return OF_RESTART if any(set(before.get(name, ())) & set(now[name]) for name in again) else {}


def agree_on_start(folder: Path, distributed: Distributed) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """``of_restart`` and ``starters_of_all``, the same on all ranks."""
    now = starters_of_all(distributed.gather(starters()))
    return distributed.from_main(lambda: of_restart(folder, now)), now
