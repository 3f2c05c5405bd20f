"""What main.py and the only rank of a run do, done in this process: for what does not hang on how it was started."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from evaluators.run import PeriodicEvaluation, evaluate
from launch.agents.restart import agree_on_start
from launch.options import LaunchOptions
from launch.places import find_place
from launch.places.topology import RankPlace
from launch.worker import choose_device
from main import parse_config
from tests.system.command import arguments
from trainers.run import load_model, train
from util.distributed import Distributed
from util.errors import UsageError
from util.run_options import RunOptions
from util.stop import StopRequest


class NeverStopped(StopRequest):
    """Leaves the signals to pytest."""

    def listen(self) -> None: ...


def run_here(workdir: Path, **options: Any) -> None:
    """Run to the end; the options are those of ``tests.system.command.run``."""
    config = parse_config(arguments(workdir, **options)[2:])
    find_place(config[LaunchOptions])
    device = choose_device(config[LaunchOptions].device, RankPlace(0, 0, 1, 1))
    trains = partial(train, PeriodicEvaluation, agree_on_start)
    work = trains if config[RunOptions].trains else partial(evaluate, load_model)
    work(config, Distributed(device=device), NeverStopped())


def refusal(workdir: Path, **options: Any) -> str:
    """The line that the command ends with when it refuses what it is given."""
    with pytest.raises(UsageError) as caught:
        run_here(workdir, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)
