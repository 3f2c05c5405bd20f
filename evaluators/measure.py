"""Metrics of samples that a model draws, all from one pass of sampling."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from evaluators.features import draw_features
from evaluators.job import nfe_entry
from evaluators.sample_metrics import Measured, Metric
from evaluators.subject import Entry, Evaluation, EvaluationSettings, Subject
from util.errors import UsageError


def _asked(settings: EvaluationSettings) -> bool:
    return settings.eval_fid or bool(settings.metrics)


def _check(subject: Subject) -> None:
    _ = subject.metrics


def _prepare(subject: Subject) -> None:
    # First, because a statistics file that does not fit should not be found out after hours of sampling.
    _ = subject.reference


def _run(subject: Subject) -> Iterator[tuple[str, Entry | None]]:
    settings, job = subject.settings, subject.job
    arrays, seconds = draw_features(
        job, subject.method.sample, subject.detector, settings.n_fid_samples, settings.sampling_batch_size,
        settings.published_behaviour, "fid",
    )  # fmt: skip
    for metric in subject.metrics:
        reduce = partial(_reduce, subject, metric, arrays, seconds)
        yield from (job.on_main(reduce) or {}).items()


def _reduce(
    subject: Subject, metric: Metric, arrays: Mapping[str, np.ndarray] | None, seconds: float
) -> dict[str, Entry]:
    """The entries of a metric, with what was done to get them; on rank 0."""
    assert arrays is not None
    settings, detector, job = subject.settings, subject.detector, subject.job
    common: dict[str, Any] = {
        "detector": detector.name,
        **({"detector_digest": detector.digest} if detector.digest else {}),
        **nfe_entry(arrays["n_evaluations"]),
        **job.account(settings.n_fid_samples, settings.sampling_batch_size, seconds),
    }
    try:
        entries = metric.reduce(Measured(arrays, subject.reference, detector.name, str(job.distributed.device)))
    except ValueError as error:
        raise UsageError(f"--eval_metrics {metric.name}: {error}") from None
    return {name: {**entry, **common} for name, entry in entries.items()}


SAMPLE_METRICS = Evaluation(_asked, _run, _check, _prepare)
