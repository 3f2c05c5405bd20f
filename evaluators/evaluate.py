"""All evaluations of one snapshot: what ``--mode eval`` runs, and the training loop now and then."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from diffusion.model import GenerativeModel
from evaluators.compare import COMPARE
from evaluators.job import Job, record_result
from evaluators.likelihood import LIKELIHOOD
from evaluators.loss import LOSS
from evaluators.measure import SAMPLE_METRICS
from evaluators.pictures import DENSITY
from evaluators.samples import SAMPLES, TRAJECTORY
from evaluators.subject import Entry, EvaluationSettings, Subject
from util.data.dataset import Dataset
from util.distributed import Distributed
from util.errors import Preempted

EVALUATIONS = (LOSS, LIKELIHOOD, SAMPLES, TRAJECTORY, SAMPLE_METRICS, COMPARE, DENSITY)
"""In the order in which they are done."""


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
) -> dict[str, Entry]:
    """Run the evaluations that are asked for, over all ranks, and write ``results.json`` after each.

    Every rank calls this with the same arguments. After ``Preempted`` the same call, on any number of ranks,
    goes on where it stopped.

    Args:
        method: the model, on this rank's device.
        train_dataset: what samples are compared with.
        test_dataset: data to evaluate loss and likelihood on.
        settings: what to evaluate.
        folder: evaluation folder, shared by all ranks.
        distributed: this process's place among the ranks.
        should_stop: whether this rank was told to stop; polled between chunks.
        checkpoint_step: training step of the model.
        checkpoint_digest: what tells models of the same step apart.

    Returns:
        On every rank, the entries of ``results.json`` made by this call: ``loss``, those of
        ``method.likelihoods``, ``samples``, ``trajectory``, those of ``evaluators.sample_metrics.METRICS``,
        ``compare``, ``density``.

    Raises:
        Preempted: on every rank, when one was told to stop; finished chunks are kept.
        UsageError: settings, files and data that do not go together; before any work where possible.
        RunFailed: samples that are not finite, a full disk.
    """
    job = Job(
        folder, distributed, should_stop, settings.seed, checkpoint_step, checkpoint_digest,
        {**settings.method_settings, "published_behaviour": settings.published_behaviour},
    )  # fmt: skip
    subject = Subject(job, method, train_dataset, test_dataset, settings)
    asked = [evaluation for evaluation in EVALUATIONS if evaluation.asked(settings)]
    for evaluation in asked:
        evaluation.check(subject)
    method.heed = partial(_heed, should_stop)
    for evaluation in asked:
        evaluation.prepare(subject)
    entries: dict[str, Entry] = {}
    for evaluation in asked:
        for name, entry in evaluation.run(subject):
            if entry is not None:
                record_result(job, name, entry)
                entries[name] = entry
    return distributed.broadcast(entries)


def _heed(should_stop: Callable[[], bool]) -> None:
    if should_stop():
        raise Preempted("stopped between two network evaluations")
