"""Reference statistics for the Frechet distance: read from a file, or computed from a data set."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from evaluators.detectors import FEATURES, Detector
from evaluators.engine import run_chunks
from evaluators.files import DamagedArrays, map_arrays, open_arrays, write_arrays
from evaluators.job import dataset_fingerprint
from evaluators.metrics.frechet_distance import (
    NEGATIVE_EIGENVALUE_TOLERANCE,
    Statistics,
    compute_statistics,
    smallest_and_largest_eigenvalue,
)
from util.data.dataset import Dataset
from util.distributed import Distributed
from util.errors import UsageError

logger = logging.getLogger(__name__)

FEATURE_KEYS = ("features", "pool_3")
_SYMMETRY_TOLERANCE = 1e-4
_ROWS = 4096


def load_statistics(path: Path) -> Statistics:
    """Read a statistics file of either public layout.

    ``mu`` (F,) and ``sigma`` (F, F), or ``features`` or ``pool_3``: the features (N, F) themselves. Any real dtype.

    Raises:
        UsageError: no such file, not an ``.npz`` file of plain arrays, neither layout, wrong shapes, numbers
            that are not finite, or a ``sigma`` that is no covariance.
    """
    arrays = _read(path)
    if "mu" in arrays and "sigma" in arrays:
        mean, covariance = _real(path, "mu", arrays["mu"], 1), _real(path, "sigma", arrays["sigma"], 2)
        if covariance.shape != (len(mean), len(mean)):
            raise UsageError(
                f"fid_statistics {path}: sigma has shape {covariance.shape} but mu has {len(mean)} entries"
            )
        _check_covariance(path, covariance)
        n = arrays.get("n")
        n_samples = int(n) if n is not None and n.ndim == 0 and n.dtype.kind in "iu" else None
        return Statistics(mean, (covariance + covariance.T) / 2.0, n_samples)
    key = next((key for key in FEATURE_KEYS if key in arrays), None)
    if key is not None:
        return compute_statistics(_features(path, key, arrays[key]))
    found = ", ".join(sorted(arrays)) or "nothing"
    raise UsageError(f"fid_statistics {path}: needs mu and sigma, or pool_3, but holds {found}")


def _features(path: Path, key: str, array: np.ndarray) -> np.ndarray:
    features = _real(path, key, array, 2)
    if len(features) < 2:
        raise UsageError(f"fid_statistics {path}: {key} holds {len(features)} sample; 2 are the least")
    return features


def dataset_statistics(
    dataset: Dataset,
    detector: Detector,
    path: Path,
    chunk_size: int,
    distributed: Distributed,
    should_stop: Callable[[], bool],
    folder: Path | None = None,
    with_features: bool = False,
) -> Statistics | None:
    """Mean and covariance of the features of a whole data set, kept in ``path`` for the next time.

    Args:
        dataset: images.
        detector: on this rank's device.
        path: statistics file (``mu``, ``sigma``, ``n``, ``detector``), in a folder that all ranks share.
        chunk_size: images at a time.
        distributed: this process's place among the ranks.
        should_stop: polled between chunks.
        folder: for features until all are there; None is that of ``path``.
        with_features: keep the features themselves in ``path`` too.

    Returns:
        The statistics on rank 0, None elsewhere.

    Raises:
        Preempted: on every rank, when one was told to stop; finished chunks are kept.
        UsageError: the data set has no end.
    """
    origin = _origin(dataset, detector)
    kept = _kept_statistics(path, origin, with_features) if distributed.is_main else None
    if distributed.broadcast(kept is not None):
        return kept
    features_path = (folder or path.parent) / f"{path.stem}_features.npz"
    arrays = dataset_features(dataset, detector, features_path, chunk_size, distributed, should_stop)
    if arrays is None:
        return None
    statistics = compute_statistics(arrays["features"])
    write_statistics(path, statistics, detector, origin, arrays["features"] if with_features else None)
    features_path.unlink()
    return statistics


def dataset_features(
    dataset: Dataset,
    detector: Detector,
    path: Path,
    chunk_size: int,
    distributed: Distributed,
    should_stop: Callable[[], bool],
) -> dict[str, np.ndarray] | None:
    """What the detector gives for each image of a data set, in order, kept in ``path`` for the next time.

    Args:
        as for ``dataset_statistics``.

    Returns:
        "features" (N, F), a memory map, on rank 0; None elsewhere.

    Raises:
        Preempted, UsageError: as ``dataset_statistics``.
    """
    if dataset.length is None:
        raise UsageError(f"data set {dataset.name} has no end: the Frechet distance needs a set of images")

    def compute(indices: torch.Tensor) -> Mapping[str, torch.Tensor]:
        return {FEATURES: detector.features(dataset.read(indices.numpy()).to(distributed.device))}

    return run_chunks(
        path, dataset.length, chunk_size, compute, json.loads(_origin(dataset, detector)), distributed,
        f"features of {dataset.name} ({detector.name})", should_stop,
    )  # fmt: skip


def _origin(dataset: Dataset, detector: Detector) -> str:
    """What tells the features of a data set from others."""
    fingerprint = {
        "evaluation": "statistics",
        "data": dataset_fingerprint(dataset),
        "detector": detector.name,
        "detector_digest": detector.digest,
    }
    return json.dumps(fingerprint, sort_keys=True)


def write_statistics(
    path: Path, statistics: Statistics, detector: Detector, origin: str, features: np.ndarray | None
) -> None:
    """Write a file that ``load_statistics`` reads, with the features (N, F) themselves unless they are None."""
    arrays = {
        "mu": statistics.mean,
        "sigma": statistics.covariance,
        "n": np.array(statistics.n_samples),
        "detector": np.array(detector.name),
        "origin": np.array(origin),
    }
    write_arrays(path, arrays if features is None else {**arrays, "features": features})


def load_features(path: Path) -> np.ndarray | None:
    """The features (N, F) in a statistics file, ``features`` or ``pool_3``; None where it holds none.

    Raises:
        UsageError: as ``load_statistics``.
    """
    arrays = _read(path)
    key = next((key for key in FEATURE_KEYS if key in arrays), None)
    return _features(path, key, arrays[key]) if key is not None else None


def check_origin(path: Path, detector: Detector, shape: Sequence[int]) -> None:
    """Raise UsageError where a statistics file says that it was made with another detector, or of other images.

    A file that does not say so, as published ones, is used with a warning.
    """
    origin = _read(path).get("origin")
    try:
        made = json.loads(str(origin))
        name, digest, made_of = made["detector"], made["detector_digest"], made["data"]["shape"]
    except (ValueError, KeyError, TypeError):
        logger.warning("fid_statistics %s: does not say what made it; it has to be %s", path, detector.name)
        return
    if (digest, name if not digest else "") != (detector.digest, detector.name if not digest else ""):
        raise UsageError(
            f"fid_statistics {path}: made with {name} {digest[:12]}, and the detector is {detector.name} "
            f"{detector.digest[:12]}; make statistics with it (python -m evaluators.statistics)"
        )
    if list(made_of) != list(shape):
        raise UsageError(
            f"fid_statistics {path}: made of images of shape {tuple(made_of)}, and these have {tuple(shape)}; "
            "make statistics of such images (python -m evaluators.statistics)"
        )


def _kept_statistics(path: Path, origin: str, with_features: bool) -> Statistics | None:
    arrays = map_arrays(path)
    if arrays is None or str(arrays.get("origin")) != origin or (with_features and "features" not in arrays):
        return None
    return Statistics(np.array(arrays["mu"]), np.array(arrays["sigma"]), int(arrays["n"]))


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UsageError(f"fid_statistics {path}: no such file")
    try:
        return open_arrays(path)
    except DamagedArrays as error:
        what = f"entry {error.name} cannot be read" if error.name else "not an .npz file"
        raise UsageError(f"fid_statistics {path}: {what}: it is damaged or holds pickled objects") from None


def _real(path: Path, key: str, array: np.ndarray, n_dimensions: int) -> np.ndarray:
    if array.ndim != n_dimensions or array.size == 0:
        kind = "a vector" if n_dimensions == 1 else "a matrix"
        raise UsageError(f"fid_statistics {path}: {key} has shape {array.shape}; {kind} expected")
    if array.dtype.kind not in "fiu":
        raise UsageError(f"fid_statistics {path}: {key} holds {array.dtype}, not real numbers")
    for start in range(0, len(array), _ROWS):
        if not np.isfinite(array[start : start + _ROWS]).all():
            raise UsageError(f"fid_statistics {path}: {key} holds numbers that are not finite")
    return array if key in FEATURE_KEYS else array.astype(np.float64)


def _check_covariance(path: Path, covariance: np.ndarray) -> None:
    largest = float(np.abs(covariance).max())
    if float(np.abs(covariance - covariance.T).max()) > _SYMMETRY_TOLERANCE * largest:
        raise UsageError(f"fid_statistics {path}: sigma is not symmetric, so it is no covariance")
    low, high = smallest_and_largest_eigenvalue((covariance + covariance.T) / 2.0)
    if low < -NEGATIVE_EIGENVALUE_TOLERANCE * max(high, 0.0):
        raise UsageError(f"fid_statistics {path}: sigma has a negative eigenvalue ({low:.3g}): no covariance")
