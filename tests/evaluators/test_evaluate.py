"""Whole evaluations: values, files, results.json, and the same of everything on 1, 2 and 3 ranks."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.model import Samples
from evaluators.evaluate import EvaluationSettings, run_evaluations
from evaluators.metrics.frechet_distance import compute_statistics, frechet_distance
from tests.evaluators.fakes import GaussianMethod, ImageMethod, Images, Points
from tests.evaluators.ranks import run_ranks
from util.distributed import Distributed
from util.errors import Preempted, RunFailed, UsageError
from util.images import to_uint8
from util.noise import Noise

SETTINGS: dict[str, Any] = {
    "seed": 3,
    "n_samples": 10,
    "n_fid_samples": 70,
    "testing_batch_size": 5,
    "sampling_batch_size": 8,
}
ALL_OF_IMAGES = {
    "eval_loss": True, "eval_likelihood": True, "eval_sample": True, "eval_fid": True, "likelihoods": ["nelbo"]
}  # fmt: skip


def _evaluate(
    distributed: Distributed, folder: Path, settings: dict[str, Any], step: int = 7, shift: float = 0.0
) -> tuple[dict[str, dict[str, Any]], list[int]]:
    method = ImageMethod(shift=shift)
    chosen = EvaluationSettings(**{**SETTINGS, **settings})
    entries = run_evaluations(
        method, Images(60, seed=1), Images(23), chosen, folder, distributed, lambda: False, step, "digest"
    )
    return entries, method.indices


def _without_seconds(entries: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        name: {key: value for key, value in entry.items() if key != "seconds"} for name, entry in entries.items()
    }


def _expected_samples(n: int, truncate: bool = False) -> torch.Tensor:
    method = ImageMethod()
    chunks = [
        method.sample(Noise(3, "evaluate sample", torch.arange(start, min(start + 8, n)))).data
        for start in range(0, n, 8)
    ]
    return to_uint8(torch.cat(chunks), truncate=truncate)


def test_images(tmp_path: Path) -> None:
    entries, _ = _evaluate(Distributed(), tmp_path, ALL_OF_IMAGES)
    assert set(entries) == {"loss", "nelbo", "samples", "fid"}

    method, dataset = ImageMethod(), Images(23)
    values = {"loss": [], "nelbo": []}
    with torch.no_grad():
        for start in range(0, 23, 5):
            indices = torch.arange(start, min(start + 5, 23))
            batch = dataset.read(indices.numpy())
            values["loss"].append(method.validation_loss(batch, Noise(3, "evaluate loss", indices)))
            values["nelbo"].append(method.nelbo(batch, Noise(3, "evaluate likelihood", indices)).value)
    for name, chunks in values.items():
        expected = torch.cat(chunks)
        assert entries[name]["value"] == pytest.approx(expected.mean().item(), rel=1e-12)
        assert entries[name]["standard_error"] == pytest.approx(expected.std().item() / math.sqrt(23), rel=1e-9)
        assert entries[name]["n_samples"] == 23
        assert entries[name]["chunk_size"] == 5
        assert entries[name]["checkpoint_step"] == 7
        assert entries[name]["seconds"] > 0.0
    nelbo = entries["nelbo"]
    assert nelbo["unit"] == "bits/dim"
    assert set(nelbo["terms"]) == {"prior", "divergence"}
    assert sum(nelbo["terms"].values()) == pytest.approx(nelbo["value"], rel=1e-12)
    assert nelbo["nfe_total"] == 4 * 105 + 103
    assert nelbo["nfe"] == pytest.approx((4 * 105 + 103) / 5)

    images = _expected_samples(70)
    with np.load(tmp_path / "samples.npz", allow_pickle=False) as file:
        np.testing.assert_array_equal(file["samples"], images[:10].permute(0, 2, 3, 1).numpy())
    with Image.open(tmp_path / "samples.png") as grid:
        assert grid.mode == "RGB"
    training = Images(60, seed=1).read(np.arange(60))
    statistics = [compute_statistics(data.flatten(1).numpy() / np.float32(255.0)) for data in (images, training)]
    assert entries["fid"]["value"] == pytest.approx(frechet_distance(*statistics), rel=1e-6)
    assert entries["fid"]["unit"] == "frechet_distance of pixels"
    assert entries["fid"]["detector"] == "pixels"
    assert (entries["fid"]["n_samples"], entries["fid"]["n_reference_samples"]) == (70, 60)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results == {"checkpoint": {"step": 7, "digest": "digest"}, "results": entries}
    assert {entry.name for entry in tmp_path.iterdir()} == {
        "results.json", "loss.npz", "nelbo.npz", "samples.npz", "samples.png", "fid_features.npz",
        "training_statistics.npz",
    }  # fmt: skip


def test_the_number_of_ranks_changes_nothing(tmp_path: Path) -> None:
    outcomes = {n: run_ranks(n, tmp_path, _evaluate, tmp_path / str(n), ALL_OF_IMAGES) for n in (1, 2, 3)}
    expected, alone = outcomes[1][0]
    for world_size in (2, 3):
        assert all(entries == outcomes[world_size][0][0] for entries, _ in outcomes[world_size])
        found = _without_seconds(outcomes[world_size][0][0])
        for name, entry in _without_seconds(expected).items():
            assert entry.keys() == found[name].keys()
            for key, value in entry.items():
                wanted = pytest.approx(value, rel=1e-6) if isinstance(value, (float, dict)) else value
                assert found[name][key] == wanted, (name, key)
        assert sorted(index for _, indices in outcomes[world_size] for index in indices) == sorted(alone)
        for name in ("samples.npz", "samples.png", "nelbo.npz", "fid_features.npz"):
            ours, theirs = tmp_path / "1" / name, tmp_path / str(world_size) / name
            assert ours.read_bytes() == theirs.read_bytes(), name


def test_results_of_one_snapshot_are_kept_together(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, _ = _evaluate(Distributed(), tmp_path, {"eval_likelihood": True, "likelihoods": ["nelbo"]})
    second, _ = _evaluate(Distributed(), tmp_path, {"eval_fid": True})
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["results"] == {**first, **second}
    with caplog.at_level(logging.WARNING):
        third, _ = _evaluate(Distributed(), tmp_path, {"eval_loss": True}, step=8)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results == {"checkpoint": {"step": 8, "digest": "digest"}, "results": third}
    assert "is of another snapshot and is replaced" in caplog.text


def test_asking_again_computes_nothing(tmp_path: Path) -> None:
    first, indices = _evaluate(Distributed(), tmp_path, ALL_OF_IMAGES)
    assert indices
    second, indices = _evaluate(Distributed(), tmp_path, ALL_OF_IMAGES)
    assert indices == []
    assert _without_seconds(first) == _without_seconds(second)


@pytest.mark.parametrize("changed", [{"method_settings": {"rtol": 1e-6}}, {"published_behaviour": True}])
def test_other_method_settings_are_evaluated_anew(tmp_path: Path, changed: dict[str, Any]) -> None:
    settings = {"eval_likelihood": True, "likelihoods": ["nelbo"], "method_settings": {"rtol": 1e-5}}
    _evaluate(Distributed(), tmp_path, settings)
    _, indices = _evaluate(Distributed(), tmp_path, {**settings, **changed})
    assert indices == list(range(23))


@pytest.mark.parametrize(("requested", "n"), [(None, 23), (23, 23), (11, 11), (100, 23)])
def test_number_of_test_items(tmp_path: Path, requested: int | None, n: int) -> None:
    entries, indices = _evaluate(Distributed(), tmp_path, {"eval_loss": True, "n_test_items": requested})
    assert indices == list(range(n))
    assert entries["loss"]["n_samples"] == n


def test_all_likelihoods_or_those_asked_for(tmp_path: Path) -> None:
    entries, _ = _evaluate(Distributed(), tmp_path / "all", {"eval_likelihood": True})
    assert list(entries) == ["nelbo", "negative_log_likelihood"]
    assert set(entries["negative_log_likelihood"]["terms"]) == {"everything"}
    wanted = {"eval_likelihood": True, "likelihoods": ["negative_log_likelihood"]}
    entries, _ = _evaluate(Distributed(), tmp_path / "one", wanted)
    assert list(entries) == ["negative_log_likelihood"]
    with pytest.raises(UsageError, match="--eval_quantities nll: this model has nelbo, negative_log_likelihood"):
        _evaluate(Distributed(), tmp_path, {"eval_likelihood": True, "likelihoods": ["nll"]})


def test_repeats_have_noise_of_their_own(tmp_path: Path) -> None:
    wanted = {"eval_likelihood": True, "likelihoods": ["nelbo"], "n_repeats": 3}
    entries, indices = _evaluate(Distributed(), tmp_path, wanted)
    assert indices == list(range(3 * 23))
    values = np.load(tmp_path / "nelbo.npz")["value"].reshape(3, 23)
    assert (values[0] != values[1]).all()
    means = values.mean(0)
    assert entries["nelbo"]["value"] == pytest.approx(means.mean(), rel=1e-12)
    assert entries["nelbo"]["standard_error"] == pytest.approx(means.std(ddof=1) / 23**0.5, rel=1e-12)


def test_trajectory(tmp_path: Path) -> None:
    _evaluate(Distributed(), tmp_path, {"eval_trajectory": True, "n_trajectories": 5})
    states = np.load(tmp_path / "trajectory.npz")["states"]
    assert states.shape == (5, 2, 4, 4, 3)
    assert (states[:, 0] == 0).all()
    expected = _expected_samples(5).permute(0, 2, 3, 1).numpy()
    assert (states[:, 1] == expected).all()
    assert (tmp_path / "trajectory.png").is_file()


def test_published_behaviour_cuts_grey_levels_off(tmp_path: Path) -> None:
    _evaluate(Distributed(), tmp_path, {"eval_sample": True, "published_behaviour": True})
    with np.load(tmp_path / "samples.npz") as file:
        expected = _expected_samples(10, truncate=True).permute(0, 2, 3, 1).numpy()
        np.testing.assert_array_equal(file["samples"], expected)


def test_statistics_file(tmp_path: Path) -> None:
    computed, _ = _evaluate(Distributed(), tmp_path / "a", {"eval_fid": True})
    file = tmp_path / "a/training_statistics.npz"
    read, _ = _evaluate(Distributed(), tmp_path / "b", {"eval_fid": True, "fid_statistics": file})
    assert read["fid"]["value"] == pytest.approx(computed["fid"]["value"], rel=1e-9)
    assert not (tmp_path / "b/training_statistics.npz").exists()
    kept, _ = _evaluate(Distributed(), tmp_path / "c", {"eval_fid": True, "statistics_folder": tmp_path / "a"})
    assert kept["fid"]["value"] == computed["fid"]["value"]
    assert not (tmp_path / "c/training_statistics.npz").exists()


def test_metrics_of_samples_are_those_of_one_set(tmp_path: Path) -> None:
    expected, drawn = _evaluate(Distributed(), tmp_path / "fid", {"eval_fid": True})
    entries, indices = _evaluate(Distributed(), tmp_path / "all", {"metrics": ["all", "fid"]})
    assert entries["fid"]["value"] == expected["fid"]["value"]
    assert indices == drawn == list(range(70))
    with pytest.raises(UsageError, match="--eval_metrics fd: no such metric"):
        _evaluate(Distributed(), tmp_path / "none", {"metrics": ["fd"]})
    assert not (tmp_path / "none").exists()


def test_a_statistics_file_that_does_not_fit_stops_every_rank_before_sampling(tmp_path: Path) -> None:
    file = tmp_path / "statistics.npz"
    np.savez(file, mu=np.zeros(5), sigma=np.eye(5))
    settings = {"eval_fid": True, "eval_likelihood": True, "fid_statistics": file}
    for outcome in run_ranks(2, tmp_path, _evaluate, tmp_path / "eval", settings):
        assert isinstance(outcome, UsageError)
        assert "5 features, but pixels has 48" in str(outcome)
        assert "\n" not in str(outcome)
    assert not (tmp_path / "eval").exists()


class Diverged(ImageMethod):
    def sample(self, noise: Noise) -> Samples:
        samples = super().sample(noise)
        samples.data[noise.indices == 9] = math.nan
        return samples


def _with(method: ImageMethod, folder: Path, **settings: Any) -> dict[str, dict[str, Any]]:
    chosen = EvaluationSettings(**{**SETTINGS, **settings})
    return run_evaluations(
        method, Images(60, seed=1), Images(23), chosen, folder, Distributed(), lambda: False, 7, "digest"
    )


@pytest.mark.parametrize("evaluation", ["eval_sample", "eval_fid"])
def test_samples_that_are_not_finite_are_not_hidden(tmp_path: Path, evaluation: str) -> None:
    with pytest.raises(RunFailed, match="sample 9 at step 7 is not finite"):
        _with(Diverged(), tmp_path, **{evaluation: True})


def test_values_that_are_not_finite_are_not_hidden(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(ImageMethod):
        def validation_loss(self, batch: torch.Tensor, noise: Noise) -> torch.Tensor:
            loss = super().validation_loss(batch, noise)
            loss[noise.indices == 4] = math.nan
            return loss

    with caplog.at_level(logging.WARNING):
        entries = _with(Broken(), tmp_path, eval_loss=True)
    assert math.isnan(entries["loss"]["value"])
    assert entries["loss"]["n_not_finite"] == 1
    assert "1 of 23 values are not finite" in caplog.text
    assert math.isnan(json.loads((tmp_path / "results.json").read_text())["results"]["loss"]["value"])


def _points(folder: Path, dimension: int = 2, **settings: Any) -> dict[str, dict[str, Any]]:
    dataset = Points(dimension)
    chosen = EvaluationSettings(**{**SETTINGS, "testing_batch_size": 500, "sampling_batch_size": 500, **settings})
    return run_evaluations(
        GaussianMethod(dimension), dataset, dataset, chosen, folder, Distributed(), lambda: False, 1, "digest"
    )


def test_points(tmp_path: Path) -> None:
    entries = _points(
        tmp_path, eval_loss=True, eval_likelihood=True, eval_sample=True, eval_density=True, n_samples=3000,
        n_density_points=40,
    )  # fmt: skip
    likelihood = entries["negative_log_likelihood"]
    assert likelihood["n_samples"] == 10_000
    assert likelihood["unit"] == "nats"
    entropy = 1.0 + math.log(2.0 * math.pi)
    assert abs(likelihood["value"] - entropy) < 5.0 * likelihood["standard_error"]
    assert likelihood["standard_error"] == pytest.approx(0.01, rel=0.1)
    with np.load(tmp_path / "samples.npz") as file:
        assert file["samples"].dtype == np.float32
        assert file["samples"].shape == (3000, 2)
    # A standard normal fits into the range of 10,000 points, so nearly all of the density does too.
    assert entries["density"]["value"] == pytest.approx(1.0, abs=1e-3)
    with Image.open(tmp_path / "density.png") as picture:
        pixels = np.asarray(picture).astype(int).sum(axis=2)
    row, column = np.unravel_index(pixels.argmax(), pixels.shape)
    lowest, highest = entries["density"]["range"]
    origin = -lowest / (highest - lowest)
    assert abs(column / pixels.shape[1] - origin) < 0.05
    assert abs(1.0 - row / pixels.shape[0] - origin) < 0.05
    with Image.open(tmp_path / "histogram.png") as picture:
        assert picture.size == (1008, 500)


def test_points_of_other_dimensions_have_no_histogram(tmp_path: Path) -> None:
    _points(tmp_path, dimension=3, eval_sample=True)
    assert not (tmp_path / "histogram.png").exists()
    with pytest.raises(UsageError, match="--eval_density draws points in two dimensions"):
        _points(tmp_path, dimension=3, eval_density=True)
    with pytest.raises(UsageError, match="--eval_fid compares images"):
        _points(tmp_path, eval_fid=True)


def test_preempted_between_evaluations(tmp_path: Path) -> None:
    method = ImageMethod()
    chosen = EvaluationSettings(**{**SETTINGS, **ALL_OF_IMAGES})
    datasets = Images(60, seed=1), Images(23)

    def told_to_stop() -> bool:
        return len(method.indices) > 30

    with pytest.raises(Preempted):
        run_evaluations(method, *datasets, chosen, tmp_path, Distributed(), told_to_stop, 7, "digest")
    assert set(json.loads((tmp_path / "results.json").read_text())["results"]) == {"loss"}
    before = list(method.indices)
    assert len(before) == 23 + 10
    _, after = _evaluate(Distributed(), tmp_path, ALL_OF_IMAGES)
    _, whole = _evaluate(Distributed(), tmp_path / "whole", ALL_OF_IMAGES)
    assert before + after == whole
