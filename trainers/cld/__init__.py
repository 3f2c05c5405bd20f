"""CLD-SGM: score matching with critically-damped Langevin diffusion (Dockhorn et al., arXiv 2112.07068)."""

from models.mlp_settings import MLPSettings
from models.ncsnpp_settings import NCSNppSettings
from trainers.cld.options import CldOptions
from trainers.system import System

SYSTEM = System(
    summary="critically-damped Langevin diffusion (CLD-SGM), or the VP-SDE",
    options=(CldOptions,), networks={"ncsnpp": NCSNppSettings, "mlp": MLPSettings},
    check="trainers.cld.method:check_cld", build="trainers.cld.method:ScoreMatching",
    importers={"cld": "trainers.cld.importer:import_cld"},
)  # fmt: skip
