"""Negative log-likelihood, or the bound on it, of held-out data."""

from typing import Any, Literal

import torch

from evaluators.job import Job, dataset_fingerprint, mean_and_standard_error, n_test_items, nfe_entry
from trainers.method import LogLikelihood, Method
from util.data.dataset import Dataset
from util.noise import Noise

Quantity = Literal["nelbo", "log_likelihood"]
"""Which of a method's two: the bound or the likelihood itself. Both are negative logarithms."""

_TERM = "term/"


def evaluate_likelihood(
    job: Job, method: Method, dataset: Dataset, quantity: Quantity, n_items: int | None, chunk_size: int
) -> dict[str, Any] | None:
    """Mean NELBO or NLL over the first ``n_items`` of a data set (None: all), and of each of its terms.

    Returns:
        The entry for ``results.json`` on rank 0, None elsewhere. Values are in the method's unit; NFE is the
        mean over chunks, and their sum.
    """

    def compute(indices: torch.Tensor) -> dict[str, torch.Tensor]:
        noise = job.noise("evaluate likelihood", indices)
        likelihood = evaluate_quantity(method, quantity, job.read(dataset, indices), noise)
        terms = {f"{_TERM}{name}": term.double() for name, term in likelihood.terms.items()}
        n_evaluations = torch.tensor(likelihood.n_evaluations)
        return {"value": likelihood.value.double(), **terms, "n_evaluations": n_evaluations}

    n_items = n_test_items(dataset, n_items)
    arrays, seconds = job.run(quantity, n_items, chunk_size, compute, data=dataset_fingerprint(dataset))
    if arrays is None:
        return None
    terms = {name: array for name, array in arrays.items() if name.startswith(_TERM)}
    return {
        **mean_and_standard_error(arrays["value"]),
        "unit": method.unit,
        "terms": {name.removeprefix(_TERM): float(array.mean()) for name, array in terms.items()},
        **nfe_entry(arrays["n_evaluations"]),
        **job.account(n_items, chunk_size, seconds),
    }


def evaluate_quantity(method: Method, quantity: Quantity, batch: torch.Tensor, noise: Noise) -> LogLikelihood:
    """The one of the method's two likelihoods that is asked for."""
    return method.nelbo(batch, noise) if quantity == "nelbo" else method.log_likelihood(batch, noise)
