"""``python -m evaluators.metrics``: sets of every kind, any number of ranks, killed and given again, and bad input."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from evaluators.image_sets import ImageArray, open_set
from evaluators.metrics.frechet_distance import compute_statistics, frechet_distance
from tests.golden import inception_rule
from tests.patience import PATIENCE, wait_for
from tests.system.command import LAUNCHER_VARIABLES, ROOT, kill_all
from util.convert_to_lmdb import main as convert
from util.errors import UsageError

N_IMAGES = 60


def _images(seed: int, n_channels: int = 3) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 120 + 60 * seed, (N_IMAGES, 6, 6, n_channels)).astype(np.uint8)


def _save(folder: Path, images: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(folder / f"{i:04d}.png")
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("sets")
    return _save(folder / "a", _images(1)), _save(folder / "b", _images(2))


def _command(a: Path, b: Path, output: Path, **options: Any) -> list[str]:
    words = [sys.executable, "-m", "evaluators.metrics", str(a), str(b), "--output", str(output), "--device", "cpu"]
    return [*words, *(word for name, value in options.items() for word in (f"--{name}", str(value)))]


def _start(*arguments: Any, **options: Any) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
    return subprocess.Popen(
        _command(*arguments, **options), cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def _compare(*arguments: Any, expect: int = 0, **options: Any) -> str:
    process = _start(*arguments, **options)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == expect, output
    return output


def _expected() -> float:
    pixels = [_images(seed).transpose(0, 3, 1, 2).reshape(N_IMAGES, -1) / np.float32(255.0) for seed in (1, 2)]
    return frechet_distance(*(compute_statistics(features) for features in pixels))


def test_folders_of_images_on_one_rank_and_two(sets: tuple[Path, Path], tmp_path: Path) -> None:
    found = []
    for n_ranks in (1, 2):
        output = _compare(*sets, tmp_path / f"{n_ranks}.json", n_gpus_per_node=n_ranks, batch_size=7)
        assert "fid" in output
        found.append(json.loads((tmp_path / f"{n_ranks}.json").read_text()))
    for entry in (result["results"]["fid"] for result in found):
        assert entry["value"] == pytest.approx(_expected(), rel=1e-6)
        assert entry["n_samples"] == entry["n_reference_samples"] == N_IMAGES
        assert entry["unit"] == "frechet_distance of pixels"
    assert found[1]["results"]["fid"]["value"] == pytest.approx(found[0]["results"]["fid"]["value"], rel=1e-12)
    assert {path.name for path in tmp_path.iterdir()} == {"1.json", "2.json"}


@pytest.mark.slow
def test_killed_and_given_again_on_another_number_of_ranks(sets: tuple[Path, Path], tmp_path: Path) -> None:
    killed = _start(*sets, tmp_path / "m.json", n_gpus_per_node=2, batch_size=1)
    chunks = tmp_path / "m.partial"
    wait_for(lambda: len(list(chunks.glob("*.chunks/*.npz"))) >= 5, "some chunks")
    kill_all(killed)
    assert not (tmp_path / "m.json").exists()
    assert len(list(chunks.glob("*.chunks/*.npz"))) + len(list(chunks.glob("*_features.npz"))) >= 1
    output = _compare(*sets, tmp_path / "m.json", n_gpus_per_node=3, batch_size=1)
    assert "chunks are done already" in output or "of 60 items (100%)" in output
    assert json.loads((tmp_path / "m.json").read_text())["results"]["fid"]["value"] == pytest.approx(
        _expected(), rel=1e-6
    )
    assert not chunks.exists()


def test_other_kinds_of_sets(sets: tuple[Path, Path], tmp_path: Path) -> None:
    expected = _images(1).transpose(0, 3, 1, 2)
    assert (
        convert(["folder", str(_save(tmp_path / "split/train", _images(1)).parent), str(tmp_path), "--image_size=6"])
        == 0
    )
    for key, images in (("arr_0", _images(1)), ("samples", _images(1)), ("images", expected)):
        np.savez(tmp_path / f"{key}.npz", **{key: images})
    np.savez_compressed(tmp_path / "small.npz", arr_0=_images(1))
    for path in (sets[0], tmp_path / "train.lmdb", *(tmp_path / f"{key}.npz" for key in ("arr_0", "images", "small"))):
        found = open_set(path)
        assert not isinstance(found, np.ndarray)
        assert (found.length, found.shape) == (N_IMAGES, (3, 6, 6))
        np.testing.assert_array_equal(found.read(np.arange(N_IMAGES)).numpy(), expected)
    grey = open_set(_save(tmp_path / "grey", _images(1, 1)))
    assert not isinstance(grey, np.ndarray)
    np.testing.assert_array_equal(grey.read(np.arange(N_IMAGES)).numpy(), _images(1, 1).transpose(0, 3, 1, 2))
    features = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
    np.savez(tmp_path / "features.npz", features=features)
    np.testing.assert_array_equal(open_set(tmp_path / "features.npz"), features)
    assert isinstance(open_set(tmp_path / "arr_0.npz"), ImageArray)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"other": np.zeros(3)}, "holds other; images or features"),
        ({"arr_0": np.zeros((2, 4, 4, 3))}, r"arr_0 is float64 \(2, 4, 4, 3\); uint8"),
        ({"arr_0": np.zeros((2, 4, 4, 5), np.uint8)}, "C 1 or 3, expected"),
        ({"features": np.zeros((1, 4))}, "N at least 2"),
        ({"features": np.array([[0.0, np.nan], [0.0, 1.0]])}, "not finite"),
    ],
)
def test_array_files_that_cannot_be_used(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UsageError, match=message) as error:
        open_set(tmp_path / "a.npz")
    assert "\n" not in str(error.value)


def test_sets_that_do_not_go_together(sets: tuple[Path, Path], tmp_path: Path) -> None:
    grey = _save(tmp_path / "grey", _images(1, 1))
    output = _compare(sets[0], grey, tmp_path / "m.json", expect=2)
    assert "images of 3x6x6 and 1x6x6" in output.splitlines()[-1]
    assert "no such folder" in _compare(sets[0], tmp_path / "none", tmp_path / "m.json", expect=2)
    assert {path.name for path in tmp_path.iterdir()} == {"grey"}
    (grey / "0030.png").unlink()
    Image.fromarray(_images(1)[0]).save(grey / "0030.png")
    mixed = open_set(grey)
    assert not isinstance(mixed, np.ndarray)
    with pytest.raises(UsageError, match=r"0030.png: in colour, but .*0000.png is grey"):
        mixed.read(np.array([30]))


@pytest.mark.slow
def test_every_metric_with_the_inception_network(tmp_path: Path) -> None:
    torch.save(inception_rule.weights("of the command/"), tmp_path / "weights.pth")
    folders = [_save(tmp_path / name, _images(seed)[:12]) for name, seed in (("a", 1), ("b", 2))]
    found = []
    for n_ranks in (1, 2):
        output = tmp_path / f"{n_ranks}.json"
        options = {"fid_detector": "inception", "fid_weights": tmp_path / "weights.pth", "batch_size": 4}
        _compare(*folders, output, n_gpus_per_node=n_ranks, **options)
        found.append(json.loads(output.read_text())["results"])
    assert list(found[0]) == list(found[1]) == ["fid", "kid", "inception_score", "precision", "recall"]
    digest = hashlib.sha256((tmp_path / "weights.pth").read_bytes()).hexdigest()
    for name in found[0]:
        assert found[1][name]["value"] == pytest.approx(found[0][name]["value"], rel=1e-6), name
        assert found[0][name]["detector_digest"] == digest
