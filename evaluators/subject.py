"""What is evaluated, with what, and the form that every evaluation has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from diffusion.model import GenerativeModel
from evaluators.detectors import Detector, DetectorSettings, open_detector
from evaluators.job import Job
from evaluators.reference import find_reference, holds_features
from evaluators.sample_metrics import ALL, FEATURES, STATISTICS, Metric, Reference, chosen_metrics
from util.data.dataset import Dataset
from util.errors import UsageError


@dataclass(frozen=True)
class EvaluationSettings:
    """What to evaluate, and with what.

    Attributes:
        seed: of all evaluation noise.
        eval_loss: the training objective on the test set.
        eval_likelihood: NELBO and NLL on the test set.
        eval_sample: samples, and a picture of them.
        eval_fid: the Frechet distance to the training set, as "fid" among ``metrics``.
        metrics: of samples, by their names in ``evaluators.sample_metrics.METRICS``; or "all".
        eval_density: a picture of the model's density (points in two dimensions).
        eval_compare: Frechet distances of the sampler and its competitors, for systems that have some.
        eval_trajectory: pictures of how samples come about.
        likelihoods: which of the method's likelihoods ``eval_likelihood`` computes; empty is all of them.
        n_repeats: times that ``eval_likelihood`` evaluates each item.
        n_test_items: test items for loss and likelihood; None is all of them, 10,000 of an endless set.
        n_samples: samples for ``eval_sample``.
        n_trajectories: samples for ``eval_trajectory``.
        n_fid_samples: samples for ``metrics`` and ``eval_compare``.
        n_density_points: places along each axis for ``eval_density``.
        testing_batch_size: items of one chunk where data are evaluated.
        sampling_batch_size: items of one chunk where samples are drawn.
        detector: of the features that samples are compared by.
        fid_statistics: statistics file to compare with; None computes those of the training set.
        statistics_folder: where statistics of the training set are kept; None is the evaluation folder.
        published_behaviour: reproduce the public code where ours corrects it.
        method_settings: everything else that changes a value (sampler, solver, tolerances), plain values. A
            result made with others is not taken up again.
    """

    seed: int
    eval_loss: bool = False
    eval_likelihood: bool = False
    eval_sample: bool = False
    eval_fid: bool = False
    metrics: Sequence[str] = ()
    eval_density: bool = False
    eval_compare: bool = False
    eval_trajectory: bool = False
    likelihoods: Sequence[str] = ()
    n_repeats: int = 1
    n_test_items: int | None = None
    n_samples: int = 64
    n_trajectories: int = 8
    n_fid_samples: int = 50_000
    n_density_points: int = 100
    testing_batch_size: int = 64
    sampling_batch_size: int = 64
    detector: DetectorSettings = field(default_factory=DetectorSettings)
    fid_statistics: Path | None = None
    statistics_folder: Path | None = None
    published_behaviour: bool = False
    method_settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """A model under evaluation, and what all that is asked of it shares.

    Attributes:
        job: the snapshot and the ranks.
        method: the model, on this rank's device.
        train_dataset: what samples are compared with.
        test_dataset: data to evaluate loss and likelihood on.
        settings: what is asked.
    """

    job: Job
    method: GenerativeModel
    train_dataset: Dataset
    test_dataset: Dataset
    settings: EvaluationSettings

    @cached_property
    def detector(self) -> Detector:
        """On this rank's device. Raises UsageError where the data are points, and as ``load_detector``."""
        dataset = self.train_dataset
        if not dataset.is_image:
            raise UsageError(f"--eval_fid compares images, but {dataset.name} has points: leave it out")
        return open_detector(self.settings.detector, dataset.shape, self.job.distributed)

    @cached_property
    def metrics(self) -> list[Metric]:
        """Of samples, those that are asked for; every rank has to ask for it.

        Raises:
            UsageError: as ``detector`` and ``chosen_metrics``.
        """
        settings = self.settings
        names = {*settings.metrics, *(("fid",) if settings.eval_fid else ())}
        if not names:
            return []
        metrics = chosen_metrics(names, self.detector.gives, "--eval_metrics")
        file = settings.fid_statistics
        if ALL in names and file is not None and not holds_features(file, self.job.distributed):
            # What the reference does not allow is not part of "all".
            return [metric for metric in metrics if metric.name in names or metric.compares_with != FEATURES]
        return metrics

    @cached_property
    def reference(self) -> Reference:
        """What samples are compared with; every rank has to ask for it. Returns and raises as ``find_reference``."""
        settings = self.settings
        needs = {metric.compares_with for metric in self.metrics} | ({STATISTICS} if settings.eval_compare else set())
        return find_reference(
            self.job, self.train_dataset, self.detector, settings.fid_statistics,
            settings.statistics_folder or self.job.folder, settings.testing_batch_size, needs,
        )  # fmt: skip


Entry = dict[str, Any]
"""Of ``results.json``, JSON-serialisable."""


def _nothing(_: Subject) -> None: ...


@dataclass(frozen=True)
class Evaluation:
    """One thing that can be asked of a model.

    Attributes:
        asked: whether it is.
        run: evaluates, over all ranks, and gives entries of ``results.json`` by name, each as soon as it is there:
            on rank 0, None elsewhere.
        check: raises UsageError for settings and data that do not go together, before any work.
        prepare: does work, over all ranks, whose failure should not be found out after hours of another evaluation.
    """

    asked: Callable[[EvaluationSettings], bool]
    run: Callable[[Subject], Iterator[tuple[str, Entry | None]]]
    check: Callable[[Subject], None] = _nothing
    prepare: Callable[[Subject], None] = _nothing
