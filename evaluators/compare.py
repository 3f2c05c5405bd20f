"""A sampler beside others that cost as much: Frechet distances in a table, and samples of each in one picture."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch

from diffusion.model import Samples
from evaluators.detectors import Detector
from evaluators.features import draw_features
from evaluators.job import Job, nfe_entry
from evaluators.metrics.frechet_distance import Statistics, compute_statistics, frechet_distance
from evaluators.samples import draw_samples
from evaluators.subject import Entry, Evaluation, Subject
from util.errors import UsageError
from util.images import make_grid, save_png, side_by_side
from util.noise import Noise

logger = logging.getLogger(__name__)

N_IMAGES_OF_GRID = 36

Sampler = Callable[[Noise], Samples]


@runtime_checkable
class ComparesSamplers(Protocol):
    """A method whose sampler has competitors."""

    @property
    def compared_samplers(self) -> Mapping[str, Sampler]:
        """By name (letters and underscores), its own sampler and others with as many network evaluations."""
        ...


def compare_samplers(
    job: Job,
    samplers: Mapping[str, Sampler],
    detector: Detector,
    reference: Statistics | None,
    n_samples: int,
    chunk_size: int,
    published_behaviour: bool = False,
) -> dict[str, Any] | None:
    """Frechet distance of each sampler, all from the same noise, and ``compare.png``: a grid of each, side by side.

    Args:
        job: the snapshot and the ranks.
        samplers: by name.
        detector, n_samples, chunk_size, published_behaviour: as ``evaluators.features.draw_features``.
        reference: statistics to compare with; used on rank 0.

    Returns:
        The entry for ``results.json`` on rank 0, None elsewhere: under ``samplers`` the distance and NFE of each.
    """
    n_shown = min(n_samples, N_IMAGES_OF_GRID)

    def compute(sampler: Sampler, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        images, _ = draw_samples(job, sampler, indices, published_behaviour)
        return {"samples": images}

    rows: dict[str, dict[str, Any]] = {}
    grids, seconds = {}, 0.0
    for name, sampler in samplers.items():
        arrays, _ = job.run(
            f"compare_{name}_samples", n_shown, chunk_size, partial(compute, sampler),
            published_behaviour=published_behaviour,
        )  # fmt: skip
        found, seconds_of_one = draw_features(
            job, sampler, detector, n_samples, chunk_size, published_behaviour, f"compare_{name}"
        )
        if arrays is not None and found is not None and reference is not None:
            value = frechet_distance(compute_statistics(found["features"]), reference)
            row = {"value": value, **nfe_entry(found["n_evaluations"]), "seconds": seconds_of_one}
            grids[f"{name}, NFE {row['nfe']:g}: {value:.4g}"] = make_grid(torch.from_numpy(arrays["samples"].copy()))
            rows[name] = row
            seconds += seconds_of_one
    if not rows:
        return None
    save_png(job.folder / "compare.png", side_by_side(grids))
    width = max(map(len, rows))
    logger.info("%s, %d samples", detector.quantity, n_samples)
    for name, row in rows.items():
        logger.info("  %-*s  NFE %4g  %.5g", width, name, row["nfe"], row["value"])
    return {
        "samplers": rows,
        "unit": detector.quantity,
        "detector": detector.name,
        **job.account(n_samples, chunk_size, seconds),
    }


def _check(subject: Subject) -> None:
    if not isinstance(subject.method, ComparesSamplers):
        raise UsageError("--eval_compare: this system has nothing to compare its sampler with; leave it out")
    _ = subject.detector


def _prepare(subject: Subject) -> None:
    _ = subject.reference


def _run(subject: Subject) -> Iterator[tuple[str, Entry | None]]:
    assert isinstance(subject.method, ComparesSamplers)
    settings = subject.settings
    yield "compare", compare_samplers(
        subject.job, subject.method.compared_samplers, subject.detector, subject.reference.statistics,
        settings.n_fid_samples, settings.sampling_batch_size, settings.published_behaviour,
    )  # fmt: skip


COMPARE = Evaluation(lambda settings: settings.eval_compare, _run, _check, _prepare)
