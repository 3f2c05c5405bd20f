"""Where the public code of ScoreFlow differs from ours (docs/differences.md), each difference by what it does."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Behaviour:
    """What the mathematics is asked to do; the defaults are right."""

    linearised_start: bool = False
    """Kernel and weight at small times in first order, see ``VariancePreserving``."""
    by_bisection: bool = False
    """How importance-sampled times are found, see ``ClosedFormTimes``."""
    batch_step_sizes: bool = False
    """Langevin steps from norms of the batch, see ``langevin``."""
    counts_both: bool = False
    """Network evaluations of predictor-corrector sampling, see ``PredictorCorrector``."""
    closed_forms: bool = True
    """What of the bounds is not estimated, see ``BoundEstimator``."""
    stratified: bool = True
    """Times of the bound, likewise."""
    weighs_length: bool = True
    """Weight of times that are drawn evenly, likewise."""
    likelihood_start_dtype: torch.dtype = torch.float64
    """To which the smallest time of likelihoods is rounded."""
    floored: bool = False
    """Floors in the dequantizer's logarithms, see ``DequantizerSettings``."""
    draws_twice: bool = False
    """Initial weights of the dequantizer, see ``initialize_from_data``."""


PUBLISHED = Behaviour(
    linearised_start=True, by_bisection=True, batch_step_sizes=True, counts_both=True, closed_forms=False,
    stratified=False, weighs_length=False, likelihood_start_dtype=torch.float32, floored=True, draws_twice=True,
)  # fmt: skip


def behaviour(published_behaviour: bool) -> Behaviour:
    """What ``--published_behaviour`` chooses."""
    return PUBLISHED if published_behaviour else Behaviour()
