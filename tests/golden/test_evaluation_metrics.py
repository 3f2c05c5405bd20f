"""Metrics of recorded features and logits, whatever the cases, sizes, neighbours and splits of the file."""

import re

import numpy as np
import pytest

from evaluators.metrics.frechet_distance import compute_statistics, frechet_distance
from evaluators.metrics.inception_score import inception_score
from evaluators.metrics.kernel_distance import kernel_distance
from evaluators.metrics.precision_recall import precision_recall
from tests.golden.vectors import load

TOLERANCE = 1e-6
ARRAYS = load("evaluation", "metrics")
INPUTS = {"generated", "real", "logits"}
RESULTS = sorted(key for key in ARRAYS if key.split("/")[-1] not in INPUTS)


def compute(name: str, generated: np.ndarray, real: np.ndarray, logits: np.ndarray, block: int) -> object:
    """What a key of the file is called, of its case; blocks of ``block`` rows."""
    if name == "fid":
        return frechet_distance(compute_statistics(generated), compute_statistics(real))
    if name == "mmd2_unbiased_all":
        return kernel_distance(generated, real, block=block).value
    if match := re.fullmatch(r"mmd2_unbiased_first_(\d+)", name):
        n = int(match[1])
        return kernel_distance(generated[:n], real[:n], block=block).value
    if match := re.fullmatch(r"(precision|recall)_k(\d+)", name):
        return getattr(precision_recall(generated, real, k=int(match[2]), block=block), match[1])
    if match := re.fullmatch(r"inception_score_(\d+)_splits_in_order", name):
        return inception_score(logits, n_splits=int(match[1]))
    raise AssertionError(f"{name}: no metric of this name")


def test_there_is_something_to_compare() -> None:
    assert RESULTS


@pytest.mark.parametrize("block", [7, 64, 10_000])
@pytest.mark.parametrize("key", RESULTS)
def test_metric(key: str, block: int) -> None:
    case, name = key.split("/")
    inputs = {name: ARRAYS[f"{case}/{name}"] for name in INPUTS}
    actual = np.asarray(compute(name, **inputs, block=block))
    expected = ARRAYS[key]
    if re.match("precision|recall", name):
        # Recorded after a division in float32; the number of covered samples is what has to be exact.
        n = len(inputs["generated" if name.startswith("precision") else "real"])
        assert round(float(actual) * n) == round(float(expected) * n)
    else:
        np.testing.assert_allclose(actual, expected, rtol=TOLERANCE, atol=1e-12)
