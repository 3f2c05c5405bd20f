"""Samplers side by side: distances with a known order, the picture, and who may be compared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffusion.model import Samples
from evaluators.compare import ComparesSamplers, compare_samplers
from evaluators.detectors import load_detector
from evaluators.job import Job
from evaluators.metrics.frechet_distance import compute_statistics
from tests.evaluators.fakes import ImageMethod
from util.distributed import Distributed
from util.noise import Noise

SHAPE = (1, 4, 4)


def sampler(brightness: float, n_evaluations: int):
    """Images of noise around a grey level."""

    def draw(noise: Noise) -> Samples:
        return Samples((brightness + 0.05 * noise.normal(*SHAPE)).clamp(0, 1), n_evaluations)

    return draw


def test_distances_and_picture(tmp_path: Path) -> None:
    job = Job(tmp_path, Distributed(), lambda: False, 0, 7, "digest", {})
    detector = load_detector("pixels", SHAPE, torch.device("cpu"))
    data = sampler(0.5, 0)(Noise(9, "data", torch.arange(400))).data
    reference = compute_statistics(data.flatten(1).double().numpy())
    samplers = {"near": sampler(0.5, 5), "far": sampler(0.8, 5)}
    entry = compare_samplers(job, samplers, detector, reference, 200, 64)
    assert entry is not None
    rows = entry["samplers"]
    assert list(rows) == ["near", "far"]
    assert rows["near"]["value"] < 0.05
    # The means differ by 0.3 in each of sixteen pixels, the covariances do not.
    np.testing.assert_allclose(rows["far"]["value"] - rows["near"]["value"], 16 * 0.3**2, rtol=0.02)
    assert {row["nfe"] for row in rows.values()} == {5}
    assert entry["n_samples"] == 200
    json.dumps(entry)
    picture = np.asarray(Image.open(tmp_path / "compare.png"))
    width = picture.shape[1] // 2
    assert picture[40:, :width].mean() < picture[40:, width:].mean() - 30


def test_systems_without_competitors_are_told_apart() -> None:
    assert not isinstance(ImageMethod(), ComparesSamplers)
