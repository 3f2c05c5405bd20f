"""DDPM: noise prediction in discrete steps (Ho et al., arXiv 2006.11239), the teachers of HSIVI."""

from models.unet_settings import DDPMUNetSettings, ImprovedUNetSettings
from trainers.ddpm.options import DdpmOptions
from trainers.system import System

SYSTEM = System(
    summary="noise prediction in discrete steps (DDPM), the teachers of hsivi",
    options=(DdpmOptions,), networks={"ddpm_unet": DDPMUNetSettings, "improved_unet": ImprovedUNetSettings},
    check="trainers.ddpm.method:check_ddpm", build="trainers.ddpm.method:NoisePrediction",
    importers={
        "ddpm_torch": "trainers.unet_checkpoint:import_ddpm_torch",
        "improved_diffusion": "trainers.unet_checkpoint:import_improved_diffusion",
    },
)  # fmt: skip
