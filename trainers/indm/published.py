"""Where the public code of INDM differs from ours (docs/differences.md), each difference by what it does."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Behaviour:
    """What the mathematics is asked to do; the defaults are right.

    Attributes:
        averages_flow: evaluations use averaged weights of the flow too.
        weighs_length: weight of uniform times in the objective, see ``weighted_times``.
        means_add_up: the objective is the sum of the means of a step's micro-batches.
        residual_noise_twice: noise of the residual is not that of its score, see ``reconstruction_residual``.
        batch_step_sizes: Langevin steps from norms of the batch, see ``langevin``.
        counts_both: network evaluations of predictor-corrector sampling, see ``PredictorCorrector``.
        sampling_dtype: to which the sampling ODE rounds state and time.
        likelihood_start_dtype: to which the smallest time of likelihoods is rounded.
        by_initial_weights: how codes are drawn, see ``PriorFlow.inverse``.
        stops_together: when the flow's inverse is near enough, see ``InverseSettings``.
        whole_batches: the mean of latents is that of whole batches over the number that was meant.
    """

    averages_flow: bool = True
    weighs_length: bool = True
    means_add_up: bool = False
    residual_noise_twice: bool = False
    batch_step_sizes: bool = False
    counts_both: bool = False
    sampling_dtype: torch.dtype = torch.float64
    likelihood_start_dtype: torch.dtype = torch.float64
    by_initial_weights: bool = False
    stops_together: bool = False
    whole_batches: bool = False


PUBLISHED = Behaviour(
    averages_flow=False,
    weighs_length=False,
    means_add_up=True,
    residual_noise_twice=True,
    batch_step_sizes=True,
    counts_both=True,
    sampling_dtype=torch.float32,
    likelihood_start_dtype=torch.float32,
    by_initial_weights=True,
    stops_together=True,
    whole_batches=True,
)


def behaviour(published_behaviour: bool) -> Behaviour:
    """What ``--published_behaviour`` chooses."""
    return PUBLISHED if published_behaviour else Behaviour()
