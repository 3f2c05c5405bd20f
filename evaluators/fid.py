"""The Frechet distance between features of generated images and of the training set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from diffusion.model import Samples
from evaluators.detectors import Detector
from evaluators.frechet_distance import Statistics, compute_statistics, frechet_distance
from evaluators.job import Job, nfe_entry
from evaluators.samples import draw_samples
from evaluators.statistics import dataset_statistics, load_statistics
from util.data.dataset import Dataset
from util.distributed import Distributed
from util.errors import UsageError
from util.noise import Noise

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


def evaluate_fid(
    job: Job,
    sampler: Callable[[Noise], Samples],
    detector: Detector,
    reference: Statistics | None,
    n_samples: int,
    chunk_size: int,
    published_behaviour: bool = False,
    name: str = "fid",
) -> dict[str, Any] | None:
    """Frechet distance of ``n_samples`` generated images; the first ones are those of ``evaluate_samples``.

    Args:
        job: the snapshot and the ranks.
        sampler: ``sample`` of a method, or another that takes noise for each sample.
        detector: features of images, on this rank's device.
        reference: statistics to compare with; used on rank 0.
        n_samples: images to generate, at least 2.
        chunk_size: images at a time.
        published_behaviour: cut grey levels off as the public code does, instead of rounding them.
        name: of the file that keeps the features, ``<name>_features.npz``.

    Returns:
        The entry for ``results.json`` on rank 0, None elsewhere. NFE is the mean over chunks, and their sum.
    """
    if n_samples < 2:
        raise UsageError(f"the Frechet distance of {n_samples} sample: a covariance needs at least 2")

    def compute(indices: torch.Tensor) -> dict[str, torch.Tensor]:
        images, n_evaluations = draw_samples(job, sampler, indices, published_behaviour)
        return {"features": detector.features(images), "n_evaluations": torch.tensor(n_evaluations)}

    arrays, seconds = job.run(
        f"{name}_features", n_samples, chunk_size, compute,
        detector=detector.name, detector_digest=detector.digest, published_behaviour=published_behaviour,
    )  # fmt: skip
    if arrays is None or reference is None:
        return None
    return {
        "value": frechet_distance(compute_statistics(arrays["features"]), reference),
        "unit": detector.quantity,
        "detector": detector.name,
        "n_features": detector.n_features,
        "n_reference_samples": reference.n_samples,
        **nfe_entry(arrays["n_evaluations"]),
        **job.account(n_samples, chunk_size, seconds),
    }
