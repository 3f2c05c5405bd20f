"""HSIVI-SM: samplers of a few steps out of a noise model (Yu et al., arXiv 2310.17153)."""

from models.unet_settings import DDPMUNetSettings, ImprovedUNetSettings
from trainers.hsivi.options import HsiviOptions
from trainers.system import System

SYSTEM = System(
    summary="samplers of 5 to 15 steps out of a noise model (HSIVI-SM)",
    options=(HsiviOptions,), networks={"ddpm_unet": DDPMUNetSettings, "improved_unet": ImprovedUNetSettings},
    check="trainers.hsivi.method:check_hsivi", build="trainers.hsivi.method:HierarchicalMatching",
    learns_from_data=False, has_likelihood=False,
    importers={"hsivi": "trainers.hsivi.importer:import_hsivi"},
)  # fmt: skip
