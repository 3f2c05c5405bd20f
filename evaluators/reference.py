"""What generated samples are compared with: a file, or the training set."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

from evaluators.detectors import Detector
from evaluators.job import Job
from evaluators.metrics.frechet_distance import compute_statistics
from evaluators.reference_statistics import (
    check_origin,
    dataset_features,
    dataset_statistics,
    load_features,
    load_statistics,
)
from evaluators.sample_metrics import FEATURES, STATISTICS, Reference
from util.data.dataset import Dataset
from util.distributed import Distributed
from util.errors import UsageError

logger = logging.getLogger(__name__)

TRAINING_STATISTICS = "training_statistics.npz"
TRAINING_FEATURES = "training_features.npz"


def find_reference(
    job: Job,
    dataset: Dataset,
    detector: Detector,
    statistics_file: Path | None,
    folder: Path,
    chunk_size: int,
    needs: Collection[str],
) -> Reference:
    """What to compare with: of a file, or of the training set, computed once and kept in a folder.

    Args:
        job: the snapshot and the ranks.
        dataset: images.
        detector: on this rank's device.
        statistics_file: see ``reference_of_file``; None for the data set.
        folder: for what is computed of the data set.
        chunk_size: images at a time.
        needs: STATISTICS and FEATURES, what of them is needed.

    Returns:
        The reference on rank 0, an empty one elsewhere.

    Raises:
        UsageError: on every rank: as ``reference_of_file``.
    """
    if statistics_file is not None:
        return reference_of_file(statistics_file, detector, dataset, job.distributed, needs)
    if FEATURES in needs:
        path = folder / TRAINING_FEATURES
        arrays = dataset_features(dataset, detector, path, chunk_size, job.distributed, job.should_stop)
        if arrays is None:
            return Reference()
        features = arrays["features"]
        return Reference(compute_statistics(features) if STATISTICS in needs else None, features, len(features))
    if STATISTICS in needs:
        path = folder / TRAINING_STATISTICS
        statistics = dataset_statistics(dataset, detector, path, chunk_size, job.distributed, job.should_stop)
        return Reference(statistics, None, statistics.n_samples if statistics is not None else None)
    return Reference()


def reference_of_file(
    path: Path, detector: Detector, dataset: Dataset, distributed: Distributed, needs: Collection[str]
) -> Reference:
    """What a statistics file holds; see ``evaluators.reference_statistics.load_statistics``.

    Returns:
        As ``find_reference``.

    Raises:
        UsageError: the file cannot be used, holds another number of features, was made with another detector or of
            other images, or holds no features where they are needed.
    """
    reference = Reference()

    def load() -> None:
        nonlocal reference
        statistics = load_statistics(path)
        if len(statistics.mean) != detector.n_features:
            raise UsageError(
                f"fid_statistics {path}: {len(statistics.mean)} features, but {detector.name} has "
                f"{detector.n_features}; use statistics made with it (python -m evaluators.statistics)"
            )
        check_origin(path, detector, dataset.shape)
        features = load_features(path) if FEATURES in needs else None
        if FEATURES in needs and features is None:
            raise UsageError(
                f"fid_statistics {path}: mean and covariance alone; kernel distance, precision and recall compare "
                "features: use a file that has them (python -m evaluators.statistics ... --features)"
            )
        reference = Reference(statistics, features, statistics.n_samples)

    distributed.from_main(load)
    return reference


def holds_features(path: Path, distributed: Distributed) -> bool:
    """Whether a statistics file has features beside, or instead of, their mean and covariance. Raises UsageError."""
    return distributed.from_main(lambda: load_features(path) is not None)
