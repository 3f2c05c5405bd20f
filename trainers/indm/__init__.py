"""INDM: a normalizing flow and the diffusion of its latents (Kim et al., arXiv 2205.13699)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.flow_settings import FlowSettings
from models.ncsnpp_settings import NCSNppSettings
from trainers.indm.options import IndmOptions
from trainers.system import System
from util.config import Config

if TYPE_CHECKING:
    from trainers.method import Method
    from util.distributed import Distributed

# What follows imports torch only when it is called: the agent that starts ranks does without.


def check(config: Config) -> None:
    from trainers.indm.method import check_indm

    check_indm(config)


def build(config: Config, distributed: Distributed) -> Method:
    from trainers.indm.method import JointDiffusion

    return JointDiffusion(config, distributed)


def import_indm(sources: Sequence[Path]) -> dict[str, Any]:
    from trainers.indm.importer import import_indm as convert

    return convert(sources)


SYSTEM = System(
    summary="a normalizing flow and the diffusion of its latents (INDM)",
    options=(IndmOptions, FlowSettings,),
    networks={"ncsnpp": NCSNppSettings},
    check=check,
    build=build,
    importers={
        "indm": import_indm,
    },
)
