"""The Inception Score: how sure a classifier is of each image, and how many classes there are among all."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from evaluators.metrics.blocks import read_rows


class InceptionScore(NamedTuple):
    """Mean over splits, and standard deviation over splits (dividing by their number)."""

    value: float
    standard_deviation: float


def inception_score(logits: np.ndarray, n_splits: int = 10) -> InceptionScore:
    """exp(mean KL(p(y | x) || p(y))) of consecutive splits (Salimans et al., NeurIPS 2016, section 4).

    Args:
        logits: (N, classes), float32 or float64, in index order.
        n_splits: s; split i is logits i N // s to (i + 1) N // s.

    Raises:
        ValueError: fewer logits than splits, or one that is not finite.
    """
    n = len(logits)
    if not 1 <= n_splits <= n:
        raise ValueError(f"{n} samples cannot be divided into {n_splits} splits")
    scores = [_score(read_rows(logits, i * n // n_splits, (i + 1) * n // n_splits)) for i in range(n_splits)]
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))


def _score(logits: torch.Tensor) -> float:
    # Logarithms all the way: a probability that underflows has a finite logarithm, and 0 times that is 0.
    log_conditional = logits.log_softmax(dim=1)
    log_marginal = log_conditional.logsumexp(dim=0) - math.log(len(logits))
    divergences = (log_conditional.exp() * (log_conditional - log_marginal)).sum(dim=1)
    return float(divergences.mean().exp())
