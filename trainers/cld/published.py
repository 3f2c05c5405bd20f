"""Where the public code of CLD-SGM differs from ours (docs/differences.md), each difference by what it does."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Behaviour:
    """What the mathematics is asked to do; the defaults are right."""

    repeat_first_half: bool = False
    """Second half step of SSCS, see ``diffusion.continuous.samplers.sscs``."""
    sampling_dtype: torch.dtype = torch.float64
    """To which the sampling ODE rounds state and time."""
    likelihood_start_dtype: torch.dtype = torch.float64
    """To which the smallest time of likelihoods is rounded."""


PUBLISHED = Behaviour(repeat_first_half=True, sampling_dtype=torch.float32, likelihood_start_dtype=torch.float32)


def behaviour(published_behaviour: bool) -> Behaviour:
    """What ``--published_behaviour`` chooses."""
    return PUBLISHED if published_behaviour else Behaviour()
