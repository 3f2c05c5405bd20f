"""Where the public code of CLD-SGM differs from ours (docs/differences.md), each difference by what it does."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Behaviour:
    """What the mathematics is asked to do; the defaults are right.

    Attributes:
        repeat_first_half: second half step of SSCS, see ``diffusion.continuous.samplers.sscs``.
        sampling_dtype: to which the sampling ODE rounds state and time.
        likelihood_start_dtype: to which the smallest time of likelihoods is rounded.
    """

    repeat_first_half: bool = False
    sampling_dtype: torch.dtype = torch.float64
    likelihood_start_dtype: torch.dtype = torch.float64


PUBLISHED = Behaviour(repeat_first_half=True, sampling_dtype=torch.float32, likelihood_start_dtype=torch.float32)


def behaviour(published_behaviour: bool) -> Behaviour:
    """What ``--published_behaviour`` chooses."""
    return PUBLISHED if published_behaviour else Behaviour()
