"""HSIVI-SM: samplers of a few steps out of a noise model (Yu et al., arXiv 2310.17153)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.unet_settings import DDPMUNetSettings, ImprovedUNetSettings
from trainers.hsivi.options import HsiviOptions
from trainers.system import System
from util.config import Config

if TYPE_CHECKING:
    from trainers.method import Method
    from util.distributed import Distributed

# What follows imports torch only when it is called: the agent that starts ranks does without.


def check(config: Config) -> None:
    from trainers.hsivi.method import check_hsivi

    check_hsivi(config)


def build(config: Config, distributed: Distributed) -> Method:
    from trainers.hsivi.method import HierarchicalMatching

    return HierarchicalMatching(config, distributed)


def import_hsivi(sources: Sequence[Path]) -> dict[str, Any]:
    from trainers.hsivi.importer import import_hsivi as convert

    return convert(sources)


SYSTEM = System(
    summary="samplers of 5 to 15 steps out of a noise model (HSIVI-SM)",
    options=(HsiviOptions,),
    networks={"ddpm_unet": DDPMUNetSettings, "improved_unet": ImprovedUNetSettings},
    check=check,
    build=build,
    learns_from_data=False,
    has_likelihood=False,
    importers={
        "hsivi": import_hsivi,
    },
)
