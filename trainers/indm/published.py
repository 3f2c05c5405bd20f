"""Where the public code of INDM differs from ours (docs/differences.md), each difference by what it does."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Behaviour:
    """What the mathematics is asked to do; the defaults are right."""

    averages_flow: bool = True
    """Evaluations use averaged weights of the flow too."""
    weighs_length: bool = True
    """Weight of uniform times in the objective, see ``weighted_times``."""
    means_add_up: bool = False
    """The objective is the sum of the means of a step's micro-batches."""
    residual_noise_twice: bool = False
    """Noise of the residual is not that of its score, see ``reconstruction_residual``."""
    batch_step_sizes: bool = False
    """Langevin steps from norms of the batch, see ``langevin``."""
    counts_both: bool = False
    """Network evaluations of predictor-corrector sampling, see ``PredictorCorrector``."""
    sampling_dtype: torch.dtype = torch.float64
    """To which the sampling ODE rounds state and time."""
    likelihood_start_dtype: torch.dtype = torch.float64
    """To which the smallest time of likelihoods is rounded."""
    by_initial_weights: bool = False
    """How codes are drawn, see ``PriorFlow.inverse``."""
    stops_together: bool = False
    """When the flow's inverse is near enough, see ``InverseSettings``."""
    whole_batches: bool = False
    """The mean of latents is that of whole batches over the number that was meant."""


PUBLISHED = Behaviour(
    averages_flow=False, weighs_length=False, means_add_up=True, residual_noise_twice=True, batch_step_sizes=True,
    counts_both=True, sampling_dtype=torch.float32, likelihood_start_dtype=torch.float32, by_initial_weights=True,
    stops_together=True, whole_batches=True,
)  # fmt: skip


def behaviour(published_behaviour: bool) -> Behaviour:
    """What ``--published_behaviour`` chooses."""
    return PUBLISHED if published_behaviour else Behaviour()
