"""ScoreFlow: maximum-likelihood training of score models (Song et al., arXiv 2101.09258), and its dequantizer."""

from models.flowpp.settings import DequantizerSettings
from models.ncsnpp_settings import NCSNppSettings
from trainers.scoreflow.options import DequantizerOptions, ScoreFlowOptions
from trainers.system import System

SYSTEM = System(
    summary="likelihood-weighted score models (ScoreFlow) and their Flow++ dequantizer",
    options=(ScoreFlowOptions, DequantizerOptions, DequantizerSettings,), networks={"ncsnpp": NCSNppSettings},
    has_dequantizer=True,
    check="trainers.scoreflow.dequantizer:check_scoreflow_and_dequantizer",
    build="trainers.scoreflow.dequantizer:build_scoreflow",
    settle="trainers.scoreflow.dequantizer:settle_snapshots",
    importers={
        "scoreflow": "trainers.scoreflow.importer:import_scoreflow",
        "scoreflow_dequantizer": "trainers.scoreflow.dequantizer_importer:import_scoreflow_dequantizer",
    },
)  # fmt: skip
