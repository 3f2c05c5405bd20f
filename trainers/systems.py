"""From the name of a system to its method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from trainers.cld.method import ScoreMatching, check_cld
from trainers.ddpm.method import NoisePrediction, check_ddpm
from trainers.hsivi.method import HierarchicalMatching, check_hsivi
from trainers.idode.method import DiffusionOde, check_idode
from trainers.indm.method import JointDiffusion, check_indm
from trainers.method import Method
from trainers.scoreflow.dequantizer import build_scoreflow, check_scoreflow_and_dequantizer
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
