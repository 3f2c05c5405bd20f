"""Features of images that a model draws, or that a data set has: what every metric of samples is made of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from diffusion.model import Samples
from evaluators.detectors import Detector
from evaluators.job import Job
from evaluators.samples import draw_samples
from util.noise import Noise


def draw_features(
    job: Job,
    sampler: Callable[[Noise], Samples],
    detector: Detector,
    n_samples: int,
    chunk_size: int,
    published_behaviour: bool,
    name: str,
    first: int = 0,
) -> tuple[dict[str, np.ndarray] | None, float]:
    """Draw images, pass each through the detector and drop it; the first ones are those of ``evaluate_samples``.

    Args:
        job: the snapshot and the ranks.
        sampler: ``sample`` of a method, or another that takes noise for each sample.
        detector: on this rank's device.
        n_samples: images to generate.
        chunk_size: images at a time.
        published_behaviour: cut grey levels off as the public code does, instead of rounding them.
        name: of the file that keeps the features, ``<name>_features.npz``.
        first: index of the first image, which its noise hangs on.

    Returns:
        On rank 0 what the detector gives, "features" (N, F) and "logits" where it has classes, and "n_evaluations" of
        each chunk, memory maps of the file; None elsewhere. And the seconds that it took.
    """

    def compute(indices: torch.Tensor) -> dict[str, torch.Tensor]:
        images, n_evaluations = draw_samples(job, sampler, indices + first, published_behaviour)
        return {**detector.outputs(images), "n_evaluations": torch.tensor(n_evaluations)}

    return job.run(
        f"{name}_features", n_samples, chunk_size, compute,
        detector=detector.name, detector_digest=detector.digest, published_behaviour=published_behaviour,
        **({"first": first} if first else {}),
    )  # fmt: skip
