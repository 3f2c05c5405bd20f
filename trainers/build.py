"""From the name of a system to its method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from trainers.cld import ScoreMatching, check_cld
from trainers.ddpm import NoisePrediction, check_ddpm
from trainers.dequantizer import build_scoreflow, check_scoreflow_and_dequantizer
from trainers.hsivi import HierarchicalMatching, check_hsivi
from trainers.idode import DiffusionOde, check_idode
from trainers.indm import JointDiffusion, check_indm
from trainers.method import Method
from util.config import Config
from util.distributed import Distributed


@dataclass(frozen=True)
class System:
    """One published system.

    Attributes:
        check: raises UsageError for options that contradict each other, before any work.
        build: the method, its networks on this rank's device.
        learns_from_data: whether training reads the data set; else it is opened for evaluations that need it only.
    """

    check: Callable[[Config], None]
    build: Callable[[Config, Distributed], Method]
    learns_from_data: bool = True


SYSTEMS: dict[str, System] = {
    "cld": System(check_cld, ScoreMatching),
    "ddpm": System(check_ddpm, NoisePrediction),
    "hsivi": System(check_hsivi, HierarchicalMatching, learns_from_data=False),
    "idode": System(check_idode, DiffusionOde),
    "scoreflow": System(check_scoreflow_and_dequantizer, build_scoreflow),
    "indm": System(check_indm, JointDiffusion),
}


def build_method(config: Config, distributed: Distributed) -> Method:
    """The method of ``--system``, its networks on this rank's device."""
    if not config.data.is_image and distributed.device.type == "cpu":
        # Threads lose more by waiting for each other than they gain on matrices this small.
        torch.set_num_threads(1)
    return SYSTEMS[config.run.system].build(config, distributed)
