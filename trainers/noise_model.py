"""Sampling with a network that predicts noise: what ddpm does, and hsivi to compare itself with its teacher."""

from __future__ import annotations

from collections.abc import Callable

import torch

from diffusion.discrete.ddim import OnLabel, ancestral_sampling, ddim
from diffusion.discrete.ddpm import PredictNoise
from diffusion.discrete.schedule import DiscreteSchedule
from trainers.options import DiscreteOptions


def sample_by(
    sampler: str,
    predict_noise: PredictNoise,
    schedule: DiscreteSchedule,
    normal: Callable[[], torch.Tensor],
    options: DiscreteOptions,
    on_step: OnLabel | None = None,
) -> tuple[torch.Tensor, int]:
    """Samples on [-1, 1], float64 (B, C, H, W), and the number of network evaluations.

    Args:
        sampler: "ddim" or "ancestral".
        predict_noise: the network.
        schedule: the labels to visit, on the CPU.
        normal: gives the next standard normals (B, C, H, W); the first are the start.
        options: noise of the steps, and clipping.
        on_step: told of every step; what it raises ends the sampling.
    """
    start, clip = normal(), options.clip_denoised
    if sampler == "ddim":
        return ddim(
            predict_noise, schedule, start, normal=normal, eta=options.ddim_eta, clip=clip, on_step=on_step
        )
    return ancestral_sampling(
        predict_noise, schedule, start, normal=normal, variance=options.model_var_type, clip=clip, on_step=on_step
    )
