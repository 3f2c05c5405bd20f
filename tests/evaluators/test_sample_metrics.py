"""Metrics of samples: which are made, of what, and what they are compared with."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluators.detectors import load_detector
from evaluators.job import Job
from evaluators.metrics.frechet_distance import compute_statistics, frechet_distance
from evaluators.reference import TRAINING_FEATURES, find_reference, reference_of_file
from evaluators.reference_statistics import dataset_statistics
from evaluators.sample_metrics import (
    FEATURES,
    LOGITS,
    METRICS,
    STATISTICS,
    Measured,
    Reference,
    chosen_metrics,
    frechet_entries,
)
from tests.evaluators.fakes import Images
from tests.evaluators.ranks import run_ranks
from util.distributed import Distributed
from util.errors import Preempted, UsageError


def test_the_distance_of_the_first_samples_is_that_of_them_alone() -> None:
    generator = np.random.default_rng(0)
    features = generator.standard_normal((90, 4)).astype(np.float32)
    reference = compute_statistics(generator.standard_normal((70, 4)) + 0.3)
    measured = Measured({FEATURES: features}, Reference(reference, None, 70), "net.pt", "cpu")
    entry = frechet_entries(measured, counts=(10, 50, 90, 200))["fid"]
    assert list(entry["first_n"]) == ["10", "50", "90"]
    for n, value in entry["first_n"].items():
        assert value == pytest.approx(frechet_distance(compute_statistics(features[: int(n)]), reference), rel=1e-9)
    assert entry["value"] == entry["first_n"]["90"]
    assert entry["unit"] == "frechet_distance of net.pt"
    assert (entry["n_features"], entry["n_reference_samples"]) == (4, 70)
    with pytest.raises(ValueError, match="at least two samples"):
        frechet_entries(Measured({FEATURES: features[:1]}, Reference(reference), "net.pt", "cpu"))


def test_metrics_by_name() -> None:
    assert [metric.name for metric in chosen_metrics(["fid"], {FEATURES}, "--m")] == ["fid"]
    assert chosen_metrics(["all", "fid"], {FEATURES, LOGITS}, "--m") == list(METRICS)
    assert chosen_metrics([], {FEATURES}, "--m") == []
    with pytest.raises(UsageError, match=r"^--m fd: no such metric; choose of fid") as error:
        chosen_metrics(["fid", "fd"], {FEATURES}, "--m")
    assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="--m fid: the detector has no"):
        chosen_metrics(["fid"], {LOGITS}, "--m")


def test_what_a_data_set_is_compared_by_is_kept(tmp_path: Path) -> None:
    dataset = Images(50)
    detector = load_detector("pixels", dataset.shape, torch.device("cpu"))

    def find(*needs: str, stop: bool = False) -> Reference:
        job = Job(tmp_path, Distributed(), lambda: stop, 0, 7, "digest", {})
        return find_reference(job, dataset, detector, None, tmp_path, 7, needs)

    assert find() == Reference()
    pixels = dataset.read(np.arange(50)).flatten(1).float().numpy() / 255.0
    both = find(STATISTICS, FEATURES)
    np.testing.assert_array_equal(both.features, pixels)
    assert both.n_samples == 50
    assert both.statistics is not None
    alone = find(STATISTICS)
    assert alone.features is None
    assert alone.statistics is not None
    np.testing.assert_array_equal(alone.statistics.covariance, both.statistics.covariance)
    # A stop at once shows that nothing has to be computed.
    np.testing.assert_array_equal(find(FEATURES, stop=True).features, pixels)
    (tmp_path / TRAINING_FEATURES).unlink()
    with pytest.raises(Preempted):
        find(FEATURES, stop=True)


def test_a_file_without_features_is_refused_where_they_are_needed(tmp_path: Path) -> None:
    dataset, path = Images(50), tmp_path / "s.npz"
    detector = load_detector("pixels", dataset.shape, torch.device("cpu"))
    dataset_statistics(dataset, detector, path, 7, Distributed(), lambda: False)
    assert reference_of_file(path, detector, dataset, Distributed(), {STATISTICS}).n_samples == 50
    with pytest.raises(UsageError, match=r"mean and covariance alone; .* --features") as error:
        reference_of_file(path, detector, dataset, Distributed(), {FEATURES})
    assert "\n" not in str(error.value)
    dataset_statistics(dataset, detector, path, 7, Distributed(), lambda: False, with_features=True)
    found = reference_of_file(path, detector, dataset, Distributed(), {FEATURES})
    assert found.features is not None
    assert found.features.shape == (50, 48)


def _reduce(distributed: Distributed, folder: Path, stop_rank: int | None, fails: bool) -> int | None:
    job = Job(folder, distributed, lambda: distributed.rank == stop_rank, 0, 7, "digest", {})

    def compute() -> int:
        if fails:
            raise UsageError("cannot be reduced")
        if stop_rank is not None:
            threading.Event().wait()  # for ever
        return 5

    return job.on_main(compute)


def test_a_reduction_is_the_first_rank_s_and_a_stop_ends_it_on_all(tmp_path: Path) -> None:
    assert run_ranks(2, tmp_path, _reduce, tmp_path, None, False) == [5, None]
    for outcome in run_ranks(2, tmp_path, _reduce, tmp_path, 1, False):
        assert isinstance(outcome, Preempted)
    outcome = run_ranks(1, tmp_path, _reduce, tmp_path, None, True)[0]
    assert isinstance(outcome, UsageError)
