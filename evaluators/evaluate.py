"""All evaluations of one snapshot: what ``--mode eval`` runs, and the training loop now and then."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from diffusion.model import GenerativeModel
from evaluators.compare import ComparesSamplers, compare_samplers
from evaluators.detectors import load_detector
from evaluators.fid import evaluate_fid, reference_statistics
from evaluators.job import Job, record_result
from evaluators.likelihood import evaluate_likelihood
from evaluators.loss import evaluate_loss
from evaluators.pictures import check_two_dimensional, density_picture
from evaluators.samples import evaluate_samples, evaluate_trajectory
from util.data.dataset import Dataset
from util.distributed import Distributed
from util.errors import Preempted, UsageError


@dataclass(frozen=True)
class EvaluationSettings:
    """What to evaluate, and with what.

    Attributes:
        seed: of all evaluation noise.
        eval_loss: the training objective on the test set.
        eval_likelihood: NELBO and NLL on the test set.
        eval_sample: samples, and a picture of them.
        eval_fid: the Frechet distance to the training set.
        eval_density: a picture of the model's density (points in two dimensions).
        eval_compare: Frechet distances of the sampler and its competitors, for systems that have some.
        eval_trajectory: pictures of how samples come about.
        likelihoods: which of the method's likelihoods ``eval_likelihood`` computes; empty is all of them.
        n_repeats: times that ``eval_likelihood`` evaluates each item.
        n_test_items: test items for loss and likelihood; None is all of them, 10,000 of an endless set.
        n_samples: samples for ``eval_sample``.
        n_trajectories: samples for ``eval_trajectory``.
        n_fid_samples: samples for ``eval_fid``.
        n_density_points: places along each axis for ``eval_density``.
        testing_batch_size: items of one chunk where data are evaluated.
        sampling_batch_size: items of one chunk where samples are drawn.
        fid_detector: "pixels" or the path of a TorchScript file.
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
    fid_detector: str = "pixels"
    fid_statistics: Path | None = None
    statistics_folder: Path | None = None
    published_behaviour: bool = False
    method_settings: Mapping[str, Any] = field(default_factory=dict)


def check_likelihoods(method: GenerativeModel, settings: EvaluationSettings) -> None:
    """Raise UsageError where a likelihood is asked for that the model does not have."""
    unknown = [name for name in settings.likelihoods if name not in method.likelihoods]
    if unknown:
        raise UsageError(f"--eval_quantities {unknown[0]}: this model has {', '.join(method.likelihoods)}")


def run_evaluations(
    method: GenerativeModel,
    train_dataset: Dataset,
    test_dataset: Dataset,
    settings: EvaluationSettings,
    folder: Path,
    distributed: Distributed,
    should_stop: Callable[[], bool],
    checkpoint_step: int,
    checkpoint_digest: str,
) -> dict[str, dict[str, Any]]:
    """Run the evaluations that are asked for, over all ranks, and write ``results.json`` after each.

    Every rank calls this with the same arguments. After ``Preempted`` the same call, on any number of ranks,
    goes on where it stopped.

    Args:
        method: the model, on this rank's device.
        train_dataset: reference of the Frechet distance.
        test_dataset: data to evaluate loss and likelihood on.
        settings: what to evaluate.
        folder: evaluation folder, shared by all ranks.
        distributed: this process's place among the ranks.
        should_stop: whether this rank was told to stop; polled between chunks.
        checkpoint_step: training step of the model.
        checkpoint_digest: what tells models of the same step apart.

    Returns:
        On every rank, the entries of ``results.json`` made by this call: ``loss``, those of
        ``method.likelihoods``, ``samples``, ``trajectory``, ``fid``, ``compare``, ``density``.

    Raises:
        Preempted: on every rank, when one was told to stop; finished chunks are kept.
        UsageError: settings, files and data that do not go together; before any work where possible.
        RunFailed: samples that are not finite, a full disk.
    """
    job = Job(
        folder, distributed, should_stop, settings.seed, checkpoint_step, checkpoint_digest,
        {**settings.method_settings, "published_behaviour": settings.published_behaviour},
    )  # fmt: skip
    if settings.eval_density:
        check_two_dimensional(test_dataset)
    trajectory = method.trajectory
    if settings.eval_trajectory and trajectory is None:
        raise UsageError("--trajectory: this system does not draw how samples come about; leave it out")
    check_likelihoods(method, settings)
    if settings.eval_compare and not isinstance(method, ComparesSamplers):
        raise UsageError("--eval_compare: this system has nothing to compare its sampler with; leave it out")
    detector = None
    if settings.eval_fid or settings.eval_compare:
        if not train_dataset.is_image:
            raise UsageError(f"--eval_fid compares images, but {train_dataset.name} has points: leave it out")
        detector = load_detector(settings.fid_detector, train_dataset.shape, distributed.device)
    method.heed = partial(_heed, should_stop)
    entries: dict[str, dict[str, Any]] = {}

    def keep(name: str, entry: dict[str, Any] | None) -> None:
        if entry is not None:
            record_result(job, name, entry)
            entries[name] = entry

    n_test_items, testing_batch_size = settings.n_test_items, settings.testing_batch_size
    reference = None
    if detector is not None:
        # First, because a statistics file that does not fit should not be found out after hours of sampling.
        reference = reference_statistics(
            job, train_dataset, detector, settings.fid_statistics, settings.statistics_folder or folder,
            testing_batch_size,
        )  # fmt: skip
    if settings.eval_loss:
        keep("loss", evaluate_loss(job, method, test_dataset, n_test_items, testing_batch_size))
    if settings.eval_likelihood:
        for name in settings.likelihoods or method.likelihoods:
            entry = evaluate_likelihood(
                job, method, test_dataset, name, n_test_items, testing_batch_size, settings.n_repeats
            )
            keep(name, entry)
    if settings.eval_sample:
        entry = evaluate_samples(
            job, method, test_dataset, settings.n_samples, settings.sampling_batch_size,
            settings.published_behaviour,
        )  # fmt: skip
        keep("samples", entry)
    if settings.eval_trajectory and trajectory is not None:
        entry = evaluate_trajectory(
            job, trajectory, settings.n_trajectories, settings.sampling_batch_size, settings.published_behaviour
        )
        keep("trajectory", entry)
    if settings.eval_fid and detector is not None:
        entry = evaluate_fid(
            job, method.sample, detector, reference, settings.n_fid_samples, settings.sampling_batch_size,
            settings.published_behaviour,
        )  # fmt: skip
        keep("fid", entry)
    if settings.eval_compare and detector is not None and isinstance(method, ComparesSamplers):
        entry = compare_samplers(
            job, method.compared_samplers, detector, reference, settings.n_fid_samples, settings.sampling_batch_size,
            settings.published_behaviour,
        )  # fmt: skip
        keep("compare", entry)
    if settings.eval_density:
        entry = density_picture(
            job, method, test_dataset, settings.n_density_points, testing_batch_size
        )
        keep("density", entry)
    return distributed.broadcast(entries)


def _heed(should_stop: Callable[[], bool]) -> None:
    if should_stop():
        raise Preempted("stopped between two network evaluations")
