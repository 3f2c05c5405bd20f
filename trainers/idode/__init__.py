"""i-DODE: maximum-likelihood training of diffusion ODEs in log-SNR time (Zheng et al., arXiv 2305.03935)."""

from models.vdm_unet_settings import VDMUNetSettings
from trainers.idode.options import IdodeOptions
from trainers.system import System

SYSTEM = System(
    summary="diffusion ODEs in log-SNR time (i-DODE)",
    options=(IdodeOptions,), networks={"vdm_unet": VDMUNetSettings},
    check="trainers.idode.method:check_idode", build="trainers.idode.method:DiffusionOde",
    importers={"idode": "trainers.idode.importer:import_idode"},
)  # fmt: skip
