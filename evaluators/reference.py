"""What generated samples are compared with: statistics of a file, or of the training set."""

from __future__ import annotations

from pathlib import Path

from evaluators.detectors import Detector
from evaluators.frechet_distance import Statistics
from evaluators.job import Job
from evaluators.reference_statistics import dataset_statistics, load_statistics
from util.data.dataset import Dataset
from util.distributed import Distributed
from util.errors import UsageError

TRAINING_STATISTICS = "training_statistics.npz"


def reference_statistics(
    job: Job,
    dataset: Dataset,
    detector: Detector,
    statistics_file: Path | None,
    folder: Path,
    chunk_size: int,
) -> Statistics | None:
    """Statistics to compare with: of a file, or of the training set, computed once and kept in a folder.

    Returns:
        The statistics on rank 0, None elsewhere.

    Raises:
        UsageError: on every rank: the file cannot be used, or holds another number of features.
    """
    if statistics_file is not None:
        return statistics_of_file(statistics_file, detector, job.distributed)
    path = folder / TRAINING_STATISTICS
    return dataset_statistics(dataset, detector, path, chunk_size, job.distributed, job.should_stop)


def statistics_of_file(path: Path, detector: Detector, distributed: Distributed) -> Statistics | None:
    """Statistics that a file holds; returns and raises as ``reference_statistics``."""
    statistics = None

    def load() -> None:
        nonlocal statistics
        statistics = load_statistics(path)
        if len(statistics.mean) != detector.n_features:
            raise UsageError(
                f"fid_statistics {path}: {len(statistics.mean)} features, but {detector.name} has "
                f"{detector.n_features}; use statistics made with it (python -m evaluators.statistics)"
            )

    distributed.from_main(load)
    return statistics
