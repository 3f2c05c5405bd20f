"""The Frechet distance between features of generated images and of the training set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from diffusion.model import Samples
from evaluators.detectors import Detector
from evaluators.frechet_distance import Statistics, compute_statistics, frechet_distance
from evaluators.job import Job, nfe_entry
from evaluators.samples import draw_samples
from evaluators.subject import Entry, Evaluation, Subject
from util.errors import UsageError
from util.noise import Noise


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


def _check(subject: Subject) -> None:
    _ = subject.detector


def _prepare(subject: Subject) -> None:
    _ = subject.reference


def _run(subject: Subject) -> Iterator[tuple[str, Entry | None]]:
    settings = subject.settings
    yield "fid", evaluate_fid(
        subject.job, subject.method.sample, subject.detector, subject.reference, settings.n_fid_samples,
        settings.sampling_batch_size, settings.published_behaviour,
    )  # fmt: skip


FID = Evaluation(lambda settings: settings.eval_fid, _run, _check, _prepare)
