"""Statistics files: both public layouts, files that cannot be used, and the command line that makes them."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluators.detectors import load_detector
from evaluators.reference_statistics import check_origin, dataset_statistics, load_features, load_statistics
from evaluators.statistics.__main__ import main
from tests.evaluators.fakes import Images, Points
from tests.patience import PATIENCE, wait_for
from tests.system.command import kill_all
from util.distributed import Distributed
from util.errors import Preempted, UsageError

MEAN, COVARIANCE = np.array([1.0, 2.0]), np.array([[2.0, 0.5], [0.5, 1.0]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_mean_and_covariance(tmp_path: Path, dtype: type) -> None:
    np.savez(tmp_path / "s.npz", mu=MEAN.astype(dtype), sigma=COVARIANCE.astype(dtype))
    statistics = load_statistics(tmp_path / "s.npz")
    np.testing.assert_array_equal(statistics.mean, MEAN)
    np.testing.assert_array_equal(statistics.covariance, COVARIANCE)
    assert statistics.covariance.dtype == np.float64
    assert statistics.n_samples is None


def test_features(tmp_path: Path) -> None:
    features = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    np.savez_compressed(tmp_path / "s.npz", pool_3=features)
    statistics = load_statistics(tmp_path / "s.npz")
    np.testing.assert_allclose(statistics.mean, features.astype(float).mean(0), rtol=1e-12)
    np.testing.assert_allclose(statistics.covariance, np.cov(features.astype(float), rowvar=False), rtol=1e-12)
    assert statistics.n_samples == 50


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": MEAN}, "needs mu and sigma, or pool_3, but holds mu"),
        ({"mu": MEAN, "sigma": np.eye(3)}, r"sigma has shape \(3, 3\) but mu has 2 entries"),
        ({"mu": MEAN[None], "sigma": np.eye(2)}, r"mu has shape \(1, 2\)"),
        ({"mu": MEAN, "sigma": np.array([1.0, 2.0])}, r"sigma has shape \(2,\)"),
        ({"mu": np.array([np.nan, 0.0]), "sigma": np.eye(2)}, "mu holds numbers that are not finite"),
        ({"mu": MEAN, "sigma": np.array([[1.0, 0.5], [0.2, 1.0]])}, "sigma is not symmetric"),
        ({"mu": MEAN, "sigma": np.diag([1.0, -1.0])}, "negative eigenvalue"),
        ({"mu": np.array(["a", "b"]), "sigma": np.eye(2)}, "mu holds <U1"),
        ({"mu": np.array([None, {}], dtype=object), "sigma": np.eye(2)}, "entry mu cannot be read"),
        ({"pool_3": np.ones((1, 4))}, "pool_3 holds 1 sample"),
        ({"pool_3": np.ones(4)}, r"pool_3 has shape \(4,\)"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    path = tmp_path / "s.npz"
    np.savez(path, **arrays)
    with pytest.raises(UsageError, match=message) as error:
        load_statistics(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_not_archives(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    with pytest.raises(UsageError, match="no such file"):
        load_statistics(path)
    np.savez(path, mu=MEAN, sigma=COVARIANCE)
    whole = path.read_bytes()
    np.save(tmp_path / "array.npy", MEAN)
    for content in (b"", b"text", whole[: len(whole) // 2], (tmp_path / "array.npy").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"not an \.npz file"):
            load_statistics(path)


def test_statistics_of_a_data_set_are_kept(tmp_path: Path) -> None:
    dataset = Images(50)
    detector = load_detector("pixels", dataset.shape, torch.device("cpu"))
    path = tmp_path / "s.npz"
    first = dataset_statistics(dataset, detector, path, 7, Distributed(), lambda: False)
    pixels = dataset.read(np.arange(50)).flatten(1).numpy() / 255.0
    np.testing.assert_allclose(first.mean, pixels.mean(0), rtol=1e-6)
    np.testing.assert_allclose(first.covariance, np.cov(pixels, rowvar=False), rtol=1e-5, atol=1e-7)
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.npz"]
    reread = load_statistics(path)
    np.testing.assert_array_equal(reread.mean, first.mean)
    assert reread.n_samples == 50
    # A stop at once shows that nothing has to be computed.
    second = dataset_statistics(dataset, detector, path, 7, Distributed(), lambda: True)
    np.testing.assert_array_equal(first.covariance, second.covariance)
    with pytest.raises(Preempted):
        dataset_statistics(Images(50, seed=1), detector, path, 7, Distributed(), lambda: True)


def test_features_are_kept_where_they_are_asked_for(tmp_path: Path) -> None:
    dataset, path = Images(50), tmp_path / "s.npz"
    detector = load_detector("pixels", dataset.shape, torch.device("cpu"))
    without = dataset_statistics(dataset, detector, path, 7, Distributed(), lambda: False)
    assert load_features(path) is None
    statistics = dataset_statistics(dataset, detector, path, 7, Distributed(), lambda: False, with_features=True)
    np.testing.assert_array_equal(statistics.covariance, without.covariance)
    features = load_features(path)
    np.testing.assert_array_equal(features, dataset.read(np.arange(50)).flatten(1).float().numpy() / 255.0)
    np.testing.assert_array_equal(load_statistics(path).mean, statistics.mean)
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.npz"]


def test_what_made_a_file_has_to_be_what_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset, path = Images(50), tmp_path / "s.npz"
    detector = load_detector("pixels", dataset.shape, torch.device("cpu"))
    dataset_statistics(dataset, detector, path, 7, Distributed(), lambda: False)
    check_origin(path, detector, dataset.shape)
    assert caplog.text == ""
    with pytest.raises(UsageError, match=r"made with pixels .* and the detector is net.pt 0123456789ab;") as error:
        check_origin(path, replace(detector, name="net.pt", digest="0123456789abcdef"), dataset.shape)
    assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match=r"made of images of shape \(3, 4, 4\), and these have \(3, 2, 8\)"):
        check_origin(path, detector, (3, 2, 8))
    np.savez(path, mu=MEAN, sigma=COVARIANCE)
    check_origin(path, detector, dataset.shape)
    assert "does not say what made it; it has to be pixels" in caplog.text


def test_generated_points_have_no_statistics(tmp_path: Path) -> None:
    detector = load_detector("pixels", (3, 4, 4), torch.device("cpu"))
    with pytest.raises(UsageError, match="has no end"):
        dataset_statistics(Points(), detector, tmp_path / "s.npz", 7, Distributed(), lambda: False)


def test_command_line(tmp_path: Path) -> None:
    output = tmp_path / "digits.npz"
    command = [
        sys.executable, "-m", "evaluators.statistics", "--dataset", "digits", "--image_size", "8",
        "--image_channels", "1", "--fid_detector", "pixels", "--output", str(output),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "64 features" in done.stdout
    statistics = load_statistics(output)
    assert statistics.mean.shape == (64,)
    assert np.linalg.eigvalsh(statistics.covariance)[-1] > 0.0
    assert [entry.name for entry in tmp_path.iterdir()] == ["digits.npz"]


def _command(output: Path, *more: str) -> list[str]:
    command = [sys.executable, "-m", "evaluators.statistics", "--dataset", "digits", "--image_size", "8"]
    return [*command, "--image_channels", "1", "--device", "cpu", "--output", str(output), *more]


@pytest.mark.slow
def test_the_number_of_ranks_changes_nothing_and_a_killed_command_goes_on(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    killed = subprocess.Popen(
        _command(tmp_path / "killed.npz", "--n_gpus_per_node", "2", "--batch_size", "1"), cwd=root,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    chunks = tmp_path / "killed.partial/killed_features.chunks"
    wait_for(lambda: len(list(chunks.glob("*.npz"))) >= 5, "some chunks", lambda: None)
    kill_all(killed)
    done = {path.name: path.stat().st_mtime_ns for path in chunks.glob("*.npz")}
    assert 5 <= len(done) < 1541
    again = subprocess.run(
        _command(tmp_path / "killed.npz", "--n_gpus_per_node", "3", "--batch_size", "1"), cwd=root,
        capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert f"{len(done)} of 1541 chunks are done already" in again.stdout + again.stderr
    subprocess.run(_command(tmp_path / "alone.npz", "--batch_size", "1"), cwd=root, check=True, timeout=PATIENCE)
    assert (tmp_path / "alone.npz").read_bytes() == (tmp_path / "killed.npz").read_bytes()
    assert {entry.name for entry in tmp_path.iterdir()} == {"alone.npz", "killed.npz"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--output", "statistics.txt"], "has to end in .npz"),
        (["--fid_detector", "absent.pt"], "absent.pt: no such file"),
        (["--dataset", "diamond"], "needs images"),
    ],
)
def test_mistakes_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: list[str], message: str
) -> None:
    arguments = ["--dataset", "digits", "--image_size", "8", "--image_channels", "1"]
    assert main([*arguments, "--output", str(tmp_path / "s.npz"), *changed]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert message in error[-1]
    assert not (tmp_path / "s.partial").exists()
