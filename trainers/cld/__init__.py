"""CLD-SGM: score matching with critically-damped Langevin diffusion (Dockhorn et al., arXiv 2112.07068)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.mlp_settings import MLPSettings
from models.ncsnpp_settings import NCSNppSettings
from trainers.cld.options import CldOptions
from trainers.system import System
from util.config import Config

if TYPE_CHECKING:
    from trainers.method import Method
    from util.distributed import Distributed

# What follows imports torch only when it is called: the agent that starts ranks does without.


def check(config: Config) -> None:
    from trainers.cld.method import check_cld

    check_cld(config)


def build(config: Config, distributed: Distributed) -> Method:
    from trainers.cld.method import ScoreMatching

    return ScoreMatching(config, distributed)


def import_cld(sources: Sequence[Path]) -> dict[str, Any]:
    from trainers.cld.importer import import_cld as convert

    return convert(sources)


SYSTEM = System(
    summary="critically-damped Langevin diffusion (CLD-SGM), or the VP-SDE",
    options=(CldOptions,),
    networks={"ncsnpp": NCSNppSettings, "mlp": MLPSettings},
    check=check,
    build=build,
    importers={
        "cld": import_cld,
    },
)
