"""The Inception Score of classifiers whose answers are known."""

import math

import numpy as np
import pytest

from evaluators.metrics.inception_score import inception_score


def test_sure_of_all_classes_and_sure_of_none() -> None:
    sure = 1e4 * np.eye(5)[np.arange(50) % 5]
    assert inception_score(sure, 2) == pytest.approx((5.0, 0.0))
    assert inception_score(np.zeros((50, 5)), 10) == pytest.approx((1.0, 0.0))


def test_splits_are_in_index_order() -> None:
    # Ten of one class, then ten of two: scores 1 and 2 of halves, but other ones of every second logit.
    labels = np.concatenate([np.zeros(10, int), np.arange(10) % 2])
    assert inception_score(1e4 * np.eye(2)[labels], 2) == pytest.approx((1.5, 0.5))


def test_uneven_splits() -> None:
    logits = np.random.default_rng(0).standard_normal((23, 4)).astype(np.float32)
    scores = []
    for i in range(3):
        part = np.exp(logits[i * 23 // 3 : (i + 1) * 23 // 3].astype(float))
        p = part / part.sum(axis=1, keepdims=True)
        scores.append(math.exp((p * np.log(p / p.mean(axis=0))).sum(axis=1).mean()))
    assert inception_score(logits, 3) == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-12)


def test_what_has_no_score() -> None:
    with pytest.raises(ValueError, match="3 samples cannot be divided into 4 splits"):
        inception_score(np.zeros((3, 2)), 4)
    with pytest.raises(ValueError, match="sample 2 are not finite"):
        inception_score(np.array([[0.0, 1.0], [1.0, 0.0], [math.nan, 0.0]]), 1)
