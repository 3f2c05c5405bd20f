"""Reference statistics for the Frechet distance: read from a file, or computed from a data set.

Command line: ``python -m evaluators.statistics --dataset NAME --fid_detector pixels|PATH --output PATH.npz``.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from evaluators.detectors import Detector, load_detector
from evaluators.engine import run_chunks
from evaluators.files import read_arrays, write_arrays
from evaluators.frechet_distance import (
    NEGATIVE_EIGENVALUE_TOLERANCE,
    Statistics,
    compute_statistics,
    smallest_and_largest_eigenvalue,
)
from evaluators.job import dataset_fingerprint
from util.data.dataset import DATASET_NAMES, SPLITS, Dataset, open_dataset, prepare_dataset
from util.data.inspection import inspect_datasets
from util.distributed import Distributed
from util.errors import EXIT_FAILED, EXIT_FINISHED, EXIT_USAGE, RunFailed, UsageError

_SYMMETRY_TOLERANCE = 1e-4


def load_statistics(path: Path) -> Statistics:
    """Read a statistics file of either public layout.

    ``mu`` (F,) and ``sigma`` (F, F), or ``pool_3``: the features (N, F) themselves. Any real dtype.

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
    if "pool_3" in arrays:
        features = _real(path, "pool_3", arrays["pool_3"], 2)
        if len(features) < 2:
            raise UsageError(f"fid_statistics {path}: pool_3 holds {len(features)} sample; 2 are the least")
        return compute_statistics(features)
    found = ", ".join(sorted(arrays)) or "nothing"
    raise UsageError(f"fid_statistics {path}: needs mu and sigma, or pool_3, but holds {found}")


def dataset_statistics(
    dataset: Dataset,
    detector: Detector,
    path: Path,
    chunk_size: int,
    distributed: Distributed,
    should_stop: Callable[[], bool],
) -> Statistics | None:
    """Mean and covariance of the features of a whole data set, kept in ``path`` for the next time.

    Args:
        dataset: images.
        detector: on this rank's device.
        path: statistics file (``mu``, ``sigma``, ``n``, ``detector``), in a folder that all ranks share.
        chunk_size: images at a time.
        distributed: this process's place among the ranks.
        should_stop: polled between chunks.

    Returns:
        The statistics on rank 0, None elsewhere.

    Raises:
        Preempted: on every rank, when one was told to stop; finished chunks are kept.
        UsageError: the data set has no end.
    """
    if dataset.length is None:
        raise UsageError(f"data set {dataset.name} has no end: the Frechet distance needs a set of images")
    fingerprint = {
        "evaluation": "statistics",
        "data": dataset_fingerprint(dataset),
        "detector": detector.name,
        "detector_digest": detector.digest,
    }
    origin = json.dumps(fingerprint, sort_keys=True)
    kept = _kept_statistics(path, origin) if distributed.is_main else None
    if distributed.broadcast(kept is not None):
        return kept

    def compute(indices: torch.Tensor) -> dict[str, torch.Tensor]:
        images = dataset.read(indices.numpy()).to(distributed.device)
        return {"features": detector.features(images)}

    features_path = path.with_name(f"{path.stem}_features.npz")
    arrays = run_chunks(
        features_path, dataset.length, chunk_size, compute, fingerprint, distributed,
        f"features of {dataset.name} ({detector.name})", should_stop,
    )  # fmt: skip
    if arrays is None:
        return None
    statistics = compute_statistics(arrays["features"])
    write_arrays(
        path,
        {
            "mu": statistics.mean,
            "sigma": statistics.covariance,
            "n": np.array(dataset.length),
            "detector": np.array(detector.name),
            "origin": np.array(origin),
        },
    )
    features_path.unlink()
    return statistics


def _kept_statistics(path: Path, origin: str) -> Statistics | None:
    arrays = read_arrays(path)
    if arrays is None or str(arrays.get("origin")) != origin:
        return None
    return Statistics(arrays["mu"], arrays["sigma"], int(arrays["n"]))


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UsageError(f"fid_statistics {path}: no such file")
    key = ""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {}
            for key in archive.files:
                arrays[key] = archive[key]
            return arrays
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error):
        what = f"entry {key} cannot be read" if key else "not an .npz file"
        raise UsageError(f"fid_statistics {path}: {what}: it is damaged or holds pickled objects") from None


def _real(path: Path, key: str, array: np.ndarray, n_dimensions: int) -> np.ndarray:
    if array.ndim != n_dimensions or array.size == 0:
        kind = "a vector" if n_dimensions == 1 else "a matrix"
        raise UsageError(f"fid_statistics {path}: {key} has shape {array.shape}; {kind} expected")
    if array.dtype.kind not in "fiu":
        raise UsageError(f"fid_statistics {path}: {key} holds {array.dtype}, not real numbers")
    if not np.isfinite(array).all():
        raise UsageError(f"fid_statistics {path}: {key} holds numbers that are not finite")
    return array.astype(np.float64)


def _check_covariance(path: Path, covariance: np.ndarray) -> None:
    largest = float(np.abs(covariance).max())
    if float(np.abs(covariance - covariance.T).max()) > _SYMMETRY_TOLERANCE * largest:
        raise UsageError(f"fid_statistics {path}: sigma is not symmetric, so it is no covariance")
    low, high = smallest_and_largest_eigenvalue((covariance + covariance.T) / 2.0)
    if low < -NEGATIVE_EIGENVALUE_TOLERANCE * max(high, 0.0):
        raise UsageError(f"fid_statistics {path}: sigma has a negative eigenvalue ({low:.3g}): no covariance")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluators.statistics",
        description="Compute the reference statistics of a data set for the Frechet distance.",
    )
    parser.add_argument("--dataset", required=True, choices=DATASET_NAMES, help="data set")
    parser.add_argument("--data_location", default="data", help="folder of the data set's files")
    parser.add_argument("--split", default="train", choices=SPLITS, help="part of the data set")
    parser.add_argument("--image_size", type=int, default=32, help="height and width in pixels")
    parser.add_argument("--image_channels", type=int, default=3, choices=(1, 3), help="colour channels")
    parser.add_argument("--fid_detector", default="pixels", help="pixels, or the path of a TorchScript file")
    parser.add_argument("--batch_size", type=int, default=128, help="images at a time")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--output", required=True, help="statistics file to write (.npz)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        output = Path(options.output)
        if output.suffix != ".npz":
            raise UsageError(f"--output {output}: the file's name has to end in .npz")
        if options.device == "cuda" and not torch.cuda.is_available():
            raise UsageError("--device cuda: no usable GPU here; use --device cpu")
        distributed = Distributed(device=torch.device(options.device))
        prepare_dataset(options.dataset, options.data_location)
        dataset = open_dataset(
            options.dataset, options.split, options.data_location, options.image_size, options.image_channels,
            seed=0,
        )  # fmt: skip
        inspect_datasets({options.split: dataset}, distributed, None)
        detector = load_detector(options.fid_detector, dataset.shape, distributed.device)
        dataset_statistics(dataset, detector, output, options.batch_size, distributed, lambda: False)
    except (UsageError, RunFailed) as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED
    print(f"{output}: mean and covariance of {detector.n_features} features of {dataset.length} images")
    return EXIT_FINISHED


if __name__ == "__main__":
    sys.exit(main())
