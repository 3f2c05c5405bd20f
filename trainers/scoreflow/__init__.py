"""ScoreFlow: maximum-likelihood training of score models (Song et al., arXiv 2101.09258), and its dequantizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.flowpp.settings import DequantizerSettings
from models.ncsnpp_settings import NCSNppSettings
from trainers.scoreflow.options import DequantizerOptions, ScoreFlowOptions
from trainers.system import System
from util.config import Config

if TYPE_CHECKING:
    from trainers.method import Method
    from util.distributed import Distributed

# What follows imports torch only when it is called: the agent that starts ranks does without.


def check(config: Config) -> None:
    from trainers.scoreflow.dequantizer import check_scoreflow_and_dequantizer

    check_scoreflow_and_dequantizer(config)


def build(config: Config, distributed: Distributed) -> Method:
    from trainers.scoreflow.dequantizer import build_scoreflow

    return build_scoreflow(config, distributed)


def settle(config: Config) -> tuple[Config, str]:
    from trainers.scoreflow.dequantizer import settle_snapshots

    return settle_snapshots(config)


def import_scoreflow(sources: Sequence[Path]) -> dict[str, Any]:
    from trainers.scoreflow.importer import import_scoreflow as convert

    return convert(sources)


def import_scoreflow_dequantizer(sources: Sequence[Path]) -> dict[str, Any]:
    from trainers.scoreflow.dequantizer_importer import import_scoreflow_dequantizer as convert

    return convert(sources)


SYSTEM = System(
    summary="likelihood-weighted score models (ScoreFlow) and their Flow++ dequantizer",
    options=(ScoreFlowOptions, DequantizerOptions, DequantizerSettings,),
    networks={"ncsnpp": NCSNppSettings},
    check=check,
    build=build,
    settle=settle,
    importers={
        "scoreflow": import_scoreflow,
        "scoreflow_dequantizer": import_scoreflow_dequantizer,
    },
)
