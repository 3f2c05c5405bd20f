"""i-DODE: maximum-likelihood training of diffusion ODEs in log-SNR time (Zheng et al., arXiv 2305.03935)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.vdm_unet_settings import VDMUNetSettings
from trainers.idode.options import IdodeOptions
from trainers.system import System
from util.config import Config

if TYPE_CHECKING:
    from trainers.method import Method
    from util.distributed import Distributed

# What follows imports torch only when it is called: the agent that starts ranks does without.


def check(config: Config) -> None:
    from trainers.idode.method import check_idode

    check_idode(config)


def build(config: Config, distributed: Distributed) -> Method:
    from trainers.idode.method import DiffusionOde

    return DiffusionOde(config, distributed)


def import_idode(sources: Sequence[Path]) -> dict[str, Any]:
    from trainers.idode.importer import import_idode as convert

    return convert(sources)


SYSTEM = System(
    summary="diffusion ODEs in log-SNR time (i-DODE)",
    options=(IdodeOptions,),
    networks={"vdm_unet": VDMUNetSettings},
    check=check,
    build=build,
    importers={
        "idode": import_idode,
    },
)
