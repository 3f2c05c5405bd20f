"""The metrics of samples: what each needs, and how a number comes of it. They all come of one pass of sampling."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluators.detectors import FEATURES, LOGITS
from evaluators.metrics.frechet_distance import (
    RunningStatistics,
    Statistics,
    frechet_distance,
    frechet_infinity,
)
from evaluators.metrics.inception_score import inception_score
from evaluators.metrics.kernel_distance import kernel_distance
from evaluators.metrics.precision_recall import precision_recall
from util.errors import UsageError

logger = logging.getLogger(__name__)

STATISTICS = "statistics"
N_SPLITS = 10
N_NEIGHBOURS = 3
CURVE = tuple(factor * 10**power for power in range(3, 8) for factor in (1, 5, *((2,) if power > 3 else ())))
"""1,000, 5,000, 10,000, 20,000, 50,000 and so on: the first so many samples get a distance of their own."""
LEAST_OF_EXTRAPOLATION = 5000
"""Distances of fewer samples do not lie on a straight line against 1/n (Chong and Forsyth, CVPR 2020, figure 2)."""

Entry = dict[str, Any]


@dataclass(frozen=True)
class Reference:
    """What samples are compared with.

    Attributes:
        statistics: mean and covariance of features, where they are needed.
        features: float32 or float64 (M, F), where they are needed; may be a memory map.
        n_samples: M, where it is known.
    """

    statistics: Statistics | None = None
    features: np.ndarray | None = None
    n_samples: int | None = None


@dataclass(frozen=True)
class Measured:
    """What a metric is made of.

    Attributes:
        generated: "features" float32 (N, F), and "logits" (N, classes) where the detector has classes; memory maps.
        reference: with what the metric needs of it.
        detector: its name.
        device: for distances between all pairs.
    """

    generated: Mapping[str, np.ndarray]
    reference: Reference
    detector: str
    device: str

    @property
    def features(self) -> np.ndarray:
        return self.generated[FEATURES]

    @property
    def real(self) -> np.ndarray:
        assert self.reference.features is not None
        return self.reference.features


@dataclass(frozen=True)
class Metric:
    """A metric of samples.

    Attributes:
        name: in ``--eval_metrics``.
        title: for ``--help`` and messages.
        needs: what of the samples, FEATURES or LOGITS.
        compares_with: what of the reference, FEATURES, STATISTICS, or nothing.
        reduce: the entries of ``results.json`` that it makes, by name; each has at least "value" and "unit". Raises
            ValueError for numbers of samples that are too small.
    """

    name: str
    title: str
    needs: str
    compares_with: str
    reduce: Callable[[Measured], dict[str, Entry]]


def frechet_entries(measured: Measured, counts: Collection[int] = CURVE) -> dict[str, Entry]:
    """``fid``: of all samples; of the first n of them for each n of ``counts`` ("first_n"); and extrapolated to
    infinitely many ("infinity"). Features are read once."""
    features, statistics = measured.features, measured.reference.statistics
    assert statistics is not None
    n_samples, n_features = features.shape
    if n_samples < 2:
        raise ValueError("the Frechet distance needs at least two samples")
    _warn_of_few("samples", n_samples, n_features)
    if measured.reference.n_samples is not None:
        _warn_of_few("reference samples", measured.reference.n_samples, n_features)
    running, curve = RunningStatistics(n_features), []
    for n in sorted({*(n for n in counts if 1 < n < n_samples), n_samples}):
        running.add(features[running.n_samples : n])
        curve.append((n, frechet_distance(running.statistics(), statistics)))
    entry: Entry = {
        "value": curve[-1][1],
        "unit": f"frechet_distance of {measured.detector}",
        "n_features": n_features,
        "n_reference_samples": measured.reference.n_samples,
        "first_n": {str(n): value for n, value in curve},
    }
    fitted = [(n, value) for n, value in curve if n >= LEAST_OF_EXTRAPOLATION]
    if len(fitted) > 1:
        value, error = frechet_infinity(fitted)
        entry["infinity"] = {
            "value": value,
            "standard_error_of_fit": error if np.isfinite(error) else None,
            "extrapolated_from": [n for n, _ in fitted],
        }
    return {"fid": entry}


def kernel_entries(measured: Measured) -> dict[str, Entry]:
    """``kid``: of all samples, with the jackknife's standard error."""
    distance = kernel_distance(measured.features, measured.real, device=measured.device)
    error = distance.standard_error if np.isfinite(distance.standard_error) else None
    return {
        "kid": {
            "value": distance.value,
            "standard_error": error,
            "unit": f"kernel_distance of {measured.detector}",
            "n_features": measured.features.shape[1],
            "n_reference_samples": len(measured.real),
        }
    }


def score_entries(measured: Measured) -> dict[str, Entry]:
    """``inception_score``: mean of ten consecutive splits, and the standard deviation over them."""
    score = inception_score(measured.generated[LOGITS], N_SPLITS)
    return {
        "inception_score": {
            "value": score.value,
            "standard_deviation": score.standard_deviation,
            "unit": f"inception_score of {measured.detector}",
            "n_splits": N_SPLITS,
        }
    }


def precision_recall_entries(measured: Measured) -> dict[str, Entry]:
    """``precision`` and ``recall``: improved ones, of all samples."""
    found = precision_recall(measured.features, measured.real, N_NEIGHBOURS, device=measured.device)
    common = {"n_features": measured.features.shape[1], "n_reference_samples": len(measured.real), "k": N_NEIGHBOURS}
    return {
        name: {"value": value, "unit": f"{name} of {measured.detector}", **common}
        for name, value in (("precision", found.precision), ("recall", found.recall))
    }


METRICS = (
    Metric("fid", "Frechet distance", FEATURES, STATISTICS, frechet_entries),
    Metric("kid", "kernel distance", FEATURES, FEATURES, kernel_entries),
    Metric("is", "Inception Score", LOGITS, "", score_entries),
    Metric("pr", "precision and recall", FEATURES, FEATURES, precision_recall_entries),
)
"""In the order in which they are reduced."""

ALL = "all"


def chosen_metrics(names: Collection[str], available: Collection[str], flag: str) -> list[Metric]:
    """The metrics of these names, in the order of ``METRICS``; "all" is every one that can be had.

    Args:
        names: of metrics, or "all".
        available: what there is of the samples: FEATURES, LOGITS.
        flag: that gave the names, for messages.

    Raises:
        UsageError: no such metric, or one that needs what there is not.
    """
    known = {metric.name: metric for metric in METRICS}
    unknown = [name for name in names if name not in (*known, ALL)]
    if unknown:
        raise UsageError(f"{flag} {unknown[0]}: no such metric; choose of {', '.join(known)}, or all")
    without = [known[name] for name in names if name != ALL and known[name].needs not in available]
    if without:
        raise UsageError(f"{flag} {without[0].name}: the detector has no classes, which it needs; use another detector")
    return [metric for metric in METRICS if metric.name in names or (ALL in names and metric.needs in available)]


def _warn_of_few(what: str, n_samples: int, n_features: int) -> None:
    if n_samples <= n_features:
        logger.warning(
            "%d %s of %d features: their covariance is singular, and the Frechet distance far too large; use more",
            n_samples, what, n_features,
        )  # fmt: skip
