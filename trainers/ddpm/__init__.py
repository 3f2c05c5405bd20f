"""DDPM: noise prediction in discrete steps (Ho et al., arXiv 2006.11239), the teachers of HSIVI."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.unet_settings import DDPMUNetSettings, ImprovedUNetSettings
from trainers.ddpm.options import DdpmOptions
from trainers.system import System
from util.config import Config

if TYPE_CHECKING:
    from trainers.method import Method
    from util.distributed import Distributed

# What follows imports torch only when it is called: the agent that starts ranks does without.


def check(config: Config) -> None:
    from trainers.ddpm.method import check_ddpm

    check_ddpm(config)


def build(config: Config, distributed: Distributed) -> Method:
    from trainers.ddpm.method import NoisePrediction

    return NoisePrediction(config, distributed)


def import_ddpm_torch(sources: Sequence[Path]) -> dict[str, Any]:
    from trainers.ddpm.importer import import_ddpm_torch as convert

    return convert(sources)


def import_improved_diffusion(sources: Sequence[Path]) -> dict[str, Any]:
    from trainers.ddpm.importer import import_improved_diffusion as convert

    return convert(sources)


SYSTEM = System(
    summary="noise prediction in discrete steps (DDPM), the teachers of hsivi",
    options=(DdpmOptions,),
    networks={"ddpm_unet": DDPMUNetSettings, "improved_unet": ImprovedUNetSettings},
    check=check,
    build=build,
    importers={
        "ddpm_torch": import_ddpm_torch,
        "improved_diffusion": import_improved_diffusion,
    },
)
