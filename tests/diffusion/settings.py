"""Processes and data that several tests share."""

import torch

from diffusion.continuous.cld import CriticallyDampedLangevin
from diffusion.continuous.gaussian import GaussianData
from diffusion.continuous.noise_schedule import LinearBeta
from diffusion.continuous.process import Process
from diffusion.continuous.sub_vp import SubVariancePreserving
from diffusion.continuous.ve import VarianceExploding
from diffusion.continuous.vp import VariancePreserving

PROCESSES: dict[str, Process] = {
    "CLD, constant beta": CriticallyDampedLangevin(LinearBeta(4.0, 0.0), 4.0, 0.04, 1e-9, "hsm"),
    "CLD, linear beta": CriticallyDampedLangevin(LinearBeta(0.5, 8.0), 4.0, 0.04, 1e-9, "hsm"),
    "CLD, unit mass": CriticallyDampedLangevin(LinearBeta(2.0, 14.0), 1.0, 0.5, 1e-9, "hsm"),
    "VP": VariancePreserving(LinearBeta(0.1, 19.9)),
    "sub-VP": SubVariancePreserving(LinearBeta(0.1, 19.9)),
}

EVERY_PROCESS: dict[str, Process] = {**PROCESSES, "VE": VarianceExploding(0.01, 50.0)}
"""VE too, whose prior is far wider than the data, which it does not forget."""

WITHOUT_VELOCITY = ("VP", "sub-VP", "VE")

DATA = GaussianData(
    torch.tensor([0.7, -0.4], dtype=torch.float64),
    torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=torch.float64),
)
