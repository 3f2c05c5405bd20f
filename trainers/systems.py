"""The systems there are: a new one is a folder beside this file and a line in ``SYSTEMS``."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from trainers import cld, ddpm, hsivi, idode, indm, scoreflow
from trainers.options import NetworkChoice, OptimizationOptions, TrainingOptions
from trainers.system import System, load
from util.config import Config
from util.data.options import DataOptions
from util.errors import UsageError
from util.run_options import RunOptions

if TYPE_CHECKING:
    from trainers.method import Method
    from util.distributed import Distributed

SYSTEMS: dict[str, System] = {
    "cld": cld.SYSTEM,
    "scoreflow": scoreflow.SYSTEM,
    "idode": idode.SYSTEM,
    "ddpm": ddpm.SYSTEM,
    "hsivi": hsivi.SYSTEM,
    "indm": indm.SYSTEM,
}

SHARED = (RunOptions, DataOptions, NetworkChoice, OptimizationOptions, TrainingOptions)
"""Options that training of every system reads."""


def find_system(name: str) -> System:
    """The system of ``--system``: one of ours, or ``package.module:NAME`` of one that is not.

    Raises:
        UsageError: there is none of that name.
    """
    if name in SYSTEMS:
        return SYSTEMS[name]
    if ":" not in name:
        raise UsageError(
            f"--system {name}: one of {', '.join(SYSTEMS)} expected, or package.module:NAME of a system of your own"
        )
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        system = load(name)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"--system {name}: cannot be loaded ({error}); it is looked for in the folder of the command and in what "
            "PYTHONPATH names"
        ) from None
    if not isinstance(system, System):
        raise UsageError(f"--system {name}: that is no trainers.system.System; see docs/extending.md")
    return system


def build_method(config: Config, distributed: Distributed) -> Method:
    """The method of ``--system``, its networks on this rank's device."""
    if not config[DataOptions].is_image and distributed.device.type == "cpu":
        import torch

        # Threads lose more by waiting for each other than they gain on matrices this small.
        torch.set_num_threads(1)
    return load(find_system(config[RunOptions].system).build)(config, distributed)
