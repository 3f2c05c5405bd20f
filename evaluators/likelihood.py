"""Negative log-likelihoods, and bounds on them, of held-out data."""

from collections.abc import Iterator
from typing import Any

import torch

from diffusion.model import GenerativeModel
from evaluators.job import Job, dataset_fingerprint, mean_and_standard_error, n_test_items, nfe_entry
from evaluators.subject import Entry, Evaluation, EvaluationSettings, Subject
from util.data.dataset import Dataset
from util.errors import UsageError

_TERM, _APART = "term/", "apart/"


def evaluate_likelihood(
    job: Job,
    method: GenerativeModel,
    dataset: Dataset,
    name: str,
    n_items: int | None,
    chunk_size: int,
    n_repeats: int = 1,
) -> dict[str, Any] | None:
    """Mean of one of the method's likelihoods over the first ``n_items`` of a data set (None: all), and of each of
    its terms.

    Args:
        job: the snapshot and the ranks.
        method: the model.
        dataset: data to evaluate on.
        name: which of ``method.likelihoods``.
        n_items: number of items.
        chunk_size: items of one chunk.
        n_repeats: times that each item is evaluated, every time with noise of its own.

    Returns:
        The entry for ``results.json`` on rank 0, None elsewhere. Values are in the method's unit; the standard error
        is that of the mean over items; NFE is the mean over chunks, and their sum.
    """
    n_items = n_test_items(dataset, n_items)

    def compute(indices: torch.Tensor) -> dict[str, torch.Tensor]:
        batch = job.read(dataset, indices % n_items)
        likelihood = method.likelihoods[name](batch, job.noise("evaluate likelihood", indices))
        terms = {f"{_TERM}{term}": values.double() for term, values in likelihood.terms.items()}
        apart = {f"{_APART}{term}": values.double() for term, values in likelihood.apart.items()}
        n_evaluations = torch.tensor(likelihood.n_evaluations)
        return {"value": likelihood.value.double(), **terms, **apart, "n_evaluations": n_evaluations}

    settings = {"data": dataset_fingerprint(dataset), "n_repeats": n_repeats}
    arrays, seconds = job.run(name, n_items * n_repeats, chunk_size, compute, **settings)
    if arrays is None:
        return None

    def means(prefix: str) -> dict[str, float]:
        chosen = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
        return {key: float(array.mean()) for key, array in chosen.items()}

    apart = means(_APART)
    return {
        **mean_and_standard_error(arrays["value"].reshape(n_repeats, n_items).mean(axis=0)),
        "unit": method.unit,
        "terms": means(_TERM),
        **({"apart": apart} if apart else {}),
        "n_repeats": n_repeats,
        **nfe_entry(arrays["n_evaluations"]),
        **job.account(n_items, chunk_size, seconds),
    }


def check_likelihoods(method: GenerativeModel, settings: EvaluationSettings) -> None:
    """Raise UsageError where a likelihood is asked for that the model does not have."""
    unknown = [name for name in settings.likelihoods if name not in method.likelihoods]
    if unknown:
        raise UsageError(f"--eval_quantities {unknown[0]}: this model has {', '.join(method.likelihoods)}")


def _check(subject: Subject) -> None:
    check_likelihoods(subject.method, subject.settings)


def _run(subject: Subject) -> Iterator[tuple[str, Entry | None]]:
    settings = subject.settings
    for name in settings.likelihoods or subject.method.likelihoods:
        yield name, evaluate_likelihood(
            subject.job, subject.method, subject.test_dataset, name, settings.n_test_items,
            settings.testing_batch_size, settings.n_repeats,
        )  # fmt: skip


LIKELIHOOD = Evaluation(lambda settings: settings.eval_likelihood, _run, _check)
