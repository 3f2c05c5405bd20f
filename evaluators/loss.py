"""The training objective on held-out data."""

from collections.abc import Iterator
from typing import Any

import torch

from diffusion.model import GenerativeModel
from evaluators.job import Job, dataset_fingerprint, mean_and_standard_error, n_test_items
from evaluators.subject import Entry, Evaluation, Subject
from util.data.dataset import Dataset


def evaluate_loss(
    job: Job, method: GenerativeModel, dataset: Dataset, n_items: int | None, chunk_size: int
) -> dict[str, Any] | None:
    """Mean of the training objective over the first ``n_items`` of a data set (None: all of them).

    Returns:
        The entry for ``results.json`` on rank 0, None elsewhere.
    """

    def compute(indices: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            loss = method.validation_loss(job.read(dataset, indices), job.noise("evaluate loss", indices))
        return {"loss": loss.double()}

    n_items = n_test_items(dataset, n_items)
    arrays, seconds = job.run("loss", n_items, chunk_size, compute, data=dataset_fingerprint(dataset))
    if arrays is None:
        return None
    return {
        **mean_and_standard_error(arrays["loss"]),
        "unit": "training objective",
        **job.account(n_items, chunk_size, seconds),
    }


def _run(subject: Subject) -> Iterator[tuple[str, Entry | None]]:
    settings = subject.settings
    yield (
        "loss",
        evaluate_loss(
            subject.job, subject.method, subject.test_dataset, settings.n_test_items, settings.testing_batch_size
        ),
    )


LOSS = Evaluation(lambda settings: settings.eval_loss, _run)
