"""The metrics of samples: what each needs, and how a number comes of it. They all come of one pass of sampling."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluators.metrics.frechet_distance import Statistics, compute_statistics, frechet_distance
from util.errors import UsageError

logger = logging.getLogger(__name__)

FEATURES, LOGITS, STATISTICS = "features", "logits", "statistics"
CURVE = tuple(factor * 10**power for power in range(3, 8) for factor in (1, 5, *((2,) if power > 3 else ())))
"""1,000, 5,000, 10,000, 20,000, 50,000 and so on: the first so many samples get a distance of their own."""
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
    """``fid``: of all samples, and of the first n of them for each n of ``counts`` ("first_n")."""
    features, statistics = measured.features, measured.reference.statistics
    assert statistics is not None
    n_samples, n_features = features.shape
    if n_samples < 2:
        raise ValueError("the Frechet distance needs at least two samples")
    chosen = sorted({*(n for n in counts if 1 < n < n_samples), n_samples})
    curve = [(n, frechet_distance(compute_statistics(features[:n]), statistics)) for n in chosen]
    entry: Entry = {
        "value": curve[-1][1],
        "unit": f"frechet_distance of {measured.detector}",
        "n_features": n_features,
        "n_reference_samples": measured.reference.n_samples,
        "first_n": {str(n): value for n, value in curve},
    }
    return {"fid": entry}


METRICS = (Metric("fid", "Frechet distance", FEATURES, STATISTICS, frechet_entries),)
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
