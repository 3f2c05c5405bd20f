"""INDM: a normalizing flow and the diffusion of its latents (Kim et al., arXiv 2205.13699)."""

from models.flow_settings import FlowSettings
from models.ncsnpp_settings import NCSNppSettings
from trainers.indm.options import IndmOptions
from trainers.system import System

SYSTEM = System(
    summary="a normalizing flow and the diffusion of its latents (INDM)",
    options=(IndmOptions, FlowSettings,), networks={"ncsnpp": NCSNppSettings},
    check="trainers.indm.method:check_indm", build="trainers.indm.method:JointDiffusion",
    importers={"indm": "trainers.indm.importer:import_indm"},
)  # fmt: skip
