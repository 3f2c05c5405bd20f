"""Where the public code of ScoreFlow differs from ours (docs/differences.md), each difference by what it does."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Behaviour:
    """What the mathematics is asked to do; the defaults are right.

    Attributes:
        linearised_start: kernel and weight at small times in first order, see ``VariancePreserving``.
        by_bisection: how importance-sampled times are found, see ``ClosedFormTimes``.
        batch_step_sizes: Langevin steps from norms of the batch, see ``langevin``.
        counts_both: network evaluations of predictor-corrector sampling, see ``PredictorCorrector``.
        closed_forms: what of the bounds is not estimated, see ``BoundEstimator``.
        stratified: times of the bound, likewise.
        weighs_length: weight of times that are drawn evenly, likewise.
        likelihood_start_dtype: to which the smallest time of likelihoods is rounded.
        floored: floors in the dequantizer's logarithms, see ``DequantizerSettings``.
        draws_twice: initial weights of the dequantizer, see ``initialize_from_data``.
    """

    linearised_start: bool = False
    by_bisection: bool = False
    batch_step_sizes: bool = False
    counts_both: bool = False
    closed_forms: bool = True
    stratified: bool = True
    weighs_length: bool = True
    likelihood_start_dtype: torch.dtype = torch.float64
    floored: bool = False
    draws_twice: bool = False


PUBLISHED = Behaviour(
    linearised_start=True,
    by_bisection=True,
    batch_step_sizes=True,
    counts_both=True,
    closed_forms=False,
    stratified=False,
    weighs_length=False,
    likelihood_start_dtype=torch.float32,
    floored=True,
    draws_twice=True,
)


def behaviour(published_behaviour: bool) -> Behaviour:
    """What ``--published_behaviour`` chooses."""
    return PUBLISHED if published_behaviour else Behaviour()
