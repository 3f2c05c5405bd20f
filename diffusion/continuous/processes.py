"""The continuous processes by the names that the published systems give them (``--sde``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusion.continuous.cld import CriticallyDampedLangevin
from diffusion.continuous.noise_schedule import LinearBeta
from diffusion.continuous.process import Process
from diffusion.continuous.sub_vp import SubVariancePreserving
from diffusion.continuous.ve import VarianceExploding
from diffusion.continuous.vp import VariancePreserving

PROCESSES: dict[str, Callable[[Any], Process]] = {
    "cld": lambda given: CriticallyDampedLangevin(
        LinearBeta(given.beta0, given.beta1), given.m_inv, given.gamma, given.numerical_eps, given.cld_objective
    ),
    "vpsde": lambda given: VariancePreserving(LinearBeta(given.beta0, given.beta1)),
    "subvpsde": lambda given: SubVariancePreserving(LinearBeta(given.beta0, given.beta1)),
    "vesde": lambda given: VarianceExploding(given.sigma_min, given.sigma_max),
}
"""What makes a process of an object with its parameters as attributes; a new process is a file and a line here.

What a process can do beside ``Process`` are types: ``CriticallyDampedLangevin.reversed_langevin_step`` for SSCS,
``chain.DiscreteProcess``, ``importance.WeightedProcess``, ``process.LabelledProcess``,
``latent_sampling.LatentProcess``.
"""


def make_process(name: str, parameters: Any) -> Process:
    """The process of that name. Raises UsageError for parameters outside their range."""
    return PROCESSES[name](parameters)
