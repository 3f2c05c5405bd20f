"""Samples of a model, as a file of arrays and as a picture."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from diffusion.model import GenerativeModel, Samples
from evaluators.job import Job, nfe_entry
from evaluators.pictures import histogram_picture
from evaluators.subject import Entry, Evaluation, Subject
from util.data.dataset import Dataset
from util.errors import RunFailed, UsageError
from util.images import make_grid, make_strips, save_png, to_uint8
from util.noise import Noise

N_IMAGES_OF_GRID = 64


def draw_samples(
    job: Job, sampler: Callable[[Noise], Samples], indices: torch.Tensor, published_behaviour: bool
) -> tuple[torch.Tensor, int]:
    """Samples with the given int64 (B,) indices: the same ones whoever draws them, in whichever evaluation.

    Returns:
        uint8 (B, C, H, W) images or float32 (B, D) points, and the NFE spent.

    Raises:
        RunFailed: a sample is not finite.
    """
    with torch.no_grad():
        samples = sampler(job.noise("evaluate sample", indices))
    finite = samples.data.flatten(1).isfinite().all(dim=1).cpu()
    if not finite.all():
        first = int(indices[~finite][0])
        raise RunFailed(
            f"sample {first} at step {job.checkpoint_step} is not finite: the model has diverged, or the "
            "sampler needs more steps or tighter tolerances"
        )
    if samples.data.ndim == 4:
        return to_uint8(samples.data, truncate=published_behaviour), samples.n_evaluations
    return samples.data.float(), samples.n_evaluations


def evaluate_trajectory(
    job: Job,
    trajectory: Callable[[Noise], dict[str, torch.Tensor]],
    n_samples: int,
    chunk_size: int,
    published_behaviour: bool = False,
) -> dict[str, Any] | None:
    """Write ``trajectory.npz`` and ``trajectory.png``: how samples come about.

    The file holds the method's arrays by name, uint8 (N, T, H, W, C). In the picture each row is one sample, with the
    arrays side by side, time running to the right.

    Args:
        job: the snapshot and the ranks.
        trajectory: of the model, of images; see ``Method``.
        n_samples: N.
        chunk_size: samples drawn at a time.
        published_behaviour: cut grey levels off as the public code does, instead of rounding them.

    Returns:
        The entry for ``results.json`` on rank 0, None elsewhere.
    """

    def compute(indices: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            states = trajectory(job.noise("evaluate sample", indices))
        return {
            name: to_uint8(images, truncate=published_behaviour).permute(0, 1, 3, 4, 2).contiguous()
            for name, images in states.items()
        }

    arrays, seconds = job.run("trajectory", n_samples, chunk_size, compute, published_behaviour=published_behaviour)
    if arrays is None:
        return None
    save_png(job.folder / "trajectory.png", make_strips(list(arrays.values())))
    shapes = {name: list(array.shape) for name, array in arrays.items()}
    return {"shapes": shapes, **job.account(n_samples, chunk_size, seconds)}


def evaluate_samples(
    job: Job,
    method: GenerativeModel,
    dataset: Dataset,
    n_samples: int,
    chunk_size: int,
    published_behaviour: bool = False,
) -> dict[str, Any] | None:
    """Write ``samples.npz`` and a picture of them.

    ``samples`` in the file is uint8 (N, H, W, C) for images, with ``samples.png`` a grid of the first 64, and
    float32 (N, D) for points, with ``histogram.png`` of samples and data side by side when D is 2. The bytes
    of the file do not depend on the number of ranks.

    Args:
        job: the snapshot and the ranks.
        method: the model.
        dataset: test data of the same kind, to compare points with.
        n_samples, chunk_size, published_behaviour: as ``evaluate_trajectory``.

    Returns:
        The entry for ``results.json`` on rank 0, None elsewhere.
    """

    def compute(indices: torch.Tensor) -> dict[str, torch.Tensor]:
        data, n_evaluations = draw_samples(job, method.sample, indices, published_behaviour)
        if data.ndim == 4:
            data = data.permute(0, 2, 3, 1).contiguous()
        return {"samples": data, "n_evaluations": torch.tensor(n_evaluations)}

    arrays, seconds = job.run("samples", n_samples, chunk_size, compute, published_behaviour=published_behaviour)
    if arrays is None:
        return None
    data = arrays["samples"]
    if data.ndim == 4:
        images = torch.from_numpy(data[:N_IMAGES_OF_GRID].copy()).permute(0, 3, 1, 2)
        save_png(job.folder / "samples.png", make_grid(images))
    elif data.shape[1] == 2:
        n_points = min(n_samples, dataset.length or n_samples)
        points = dataset.read(np.arange(n_points)).numpy()
        save_png(job.folder / "histogram.png", histogram_picture(data, points))
    return {**nfe_entry(arrays["n_evaluations"]), **job.account(n_samples, chunk_size, seconds)}


def _run_samples(subject: Subject) -> Iterator[tuple[str, Entry | None]]:
    settings = subject.settings
    yield "samples", evaluate_samples(
        subject.job, subject.method, subject.test_dataset, settings.n_samples, settings.sampling_batch_size,
        settings.published_behaviour,
    )  # fmt: skip


def _check_trajectory(subject: Subject) -> None:
    if subject.method.trajectory is None:
        raise UsageError("--trajectory: this system does not draw how samples come about; leave it out")


def _run_trajectory(subject: Subject) -> Iterator[tuple[str, Entry | None]]:
    settings, trajectory = subject.settings, subject.method.trajectory
    assert trajectory is not None
    yield (
        "trajectory",
        evaluate_trajectory(
            subject.job, trajectory, settings.n_trajectories, settings.sampling_batch_size, settings.published_behaviour
        ),
    )


SAMPLES = Evaluation(lambda settings: settings.eval_sample, _run_samples)
TRAJECTORY = Evaluation(lambda settings: settings.eval_trajectory, _run_trajectory, _check_trajectory)
