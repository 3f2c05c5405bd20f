"""Pictures of two-dimensional data: histograms of points, and the density that a model gives each place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from diffusion.model import GenerativeModel
from evaluators.job import N_ITEMS_OF_ENDLESS_SET, Job, dataset_fingerprint, nfe_entry
from evaluators.subject import Entry, Evaluation, Subject
from util.data.dataset import Dataset
from util.errors import UsageError
from util.images import colorize, magnified, save_png

_N_BINS = 100
_PICTURE_SIDE = 500
_MARGIN = 0.1


def picture_range(points: np.ndarray) -> tuple[float, float]:
    """One range for both axes that holds all points (N, 2), a tenth of its width to spare at both ends."""
    lowest, highest = float(points.min()), float(points.max())
    margin = _MARGIN * max(highest - lowest, 1e-6)
    return lowest - margin, highest + margin


def histogram_picture(samples: np.ndarray, data: np.ndarray) -> np.ndarray:
    """Histograms of samples (left) and data (right) on the same range and colour scale.

    Args:
        samples: float (N, 2); samples outside the range of the data are not in the picture.
        data: float (M, 2).

    Returns:
        uint8 (height, width, 3), second coordinate upwards.
    """
    limits = picture_range(data)
    shares = []
    for points in (samples, data):
        counts, _, _ = np.histogram2d(points[:, 0], points[:, 1], bins=_N_BINS, range=(limits, limits))
        shares.append(_upright(counts / len(points)))
    brightest = max(float(shares[1].max()), np.finfo(float).tiny)
    panels = [magnified(colorize(share / brightest), _PICTURE_SIDE // _N_BINS) for share in shares]
    gap = np.full((panels[0].shape[0], 8, 3), 255, np.uint8)
    return np.concatenate([panels[0], gap, panels[1]], axis=1)


def density_picture(
    job: Job, method: GenerativeModel, dataset: Dataset, n_points: int, chunk_size: int
) -> dict[str, Any] | None:
    """Write ``density.png``: exp(-NLL), or exp(-NELBO), on a grid of places over the range of the data.

    Args:
        job: the snapshot and the ranks.
        method: the model, of points in two dimensions, with values in nats; its tightest likelihood is drawn.
        dataset: test data, for the range.
        n_points: places along each axis.
        chunk_size: places evaluated at a time.

    Returns:
        The entry for ``results.json`` on rank 0, None elsewhere. Its value is the probability in the picture:
        density times area summed over the grid, close to one for a good bound on a fine grid.

    Raises:
        UsageError: the data are not points in two dimensions.
    """
    check_two_dimensional(dataset)
    lowest, highest = picture_range(dataset.read(np.arange(dataset.length or N_ITEMS_OF_ENDLESS_SET)).numpy())
    cell = (highest - lowest) / n_points
    name, likelihood_of = list(method.likelihoods.items())[-1]

    def compute(indices: torch.Tensor) -> dict[str, torch.Tensor]:
        place = torch.stack([indices // n_points, indices % n_points], dim=1)
        batch = (lowest + (place.double() + 0.5) * cell).float().to(job.distributed.device)
        likelihood = likelihood_of(batch, job.noise("evaluate density", indices))
        n_evaluations = torch.tensor(likelihood.n_evaluations)
        return {"negative_log_density": likelihood.value.double(), "n_evaluations": n_evaluations}

    arrays, seconds = job.run(
        "density", n_points**2, chunk_size, compute, quantity=name, data=dataset_fingerprint(dataset)
    )
    if arrays is None:
        return None
    density = np.exp(-arrays["negative_log_density"]).reshape(n_points, n_points)
    brightest = max(float(np.nanmax(density)), np.finfo(float).tiny)
    magnify = max(1, _PICTURE_SIDE // n_points)
    save_png(job.folder / "density.png", magnified(colorize(_upright(density / brightest)), magnify))
    return {
        "value": float(density.sum()) * cell**2,
        "unit": "probability in the picture",
        "quantity": name,
        "range": [lowest, highest],
        **nfe_entry(arrays["n_evaluations"]),
        **job.account(n_points**2, chunk_size, seconds),
    }


def check_two_dimensional(dataset: Dataset) -> None:
    """Raise UsageError unless the data are points in two dimensions."""
    if dataset.is_image or tuple(dataset.shape) != (2,):
        shape = "x".join(str(size) for size in dataset.shape)
        raise UsageError(
            f"--eval_density draws points in two dimensions, but {dataset.name} has samples of shape {shape}"
        )


def _check(subject: Subject) -> None:
    check_two_dimensional(subject.test_dataset)


def _run(subject: Subject) -> Iterator[tuple[str, Entry | None]]:
    settings = subject.settings
    yield (
        "density",
        density_picture(
            subject.job, subject.method, subject.test_dataset, settings.n_density_points, settings.testing_batch_size
        ),
    )


DENSITY = Evaluation(lambda settings: settings.eval_density, _run, _check)


def _upright(cells: np.ndarray) -> np.ndarray:
    """Cells indexed by (first, second) coordinate as picture rows: second coordinate upwards."""
    return cells.T[::-1]
