import math

import numpy as np
import pytest
import torch

from util.data.dataset import open_dataset
from util.data.toy import ROLL_CENTRES, TOY_DISTRIBUTIONS
from util.noise import Noise

NAMES = sorted(TOY_DISTRIBUTIONS)


@pytest.mark.parametrize("name", NAMES)
def test_a_point_is_a_function_of_seed_split_and_index(name):
    dataset = open_dataset(name, "train", "", 0, 0, seed=3)
    points = dataset.read(np.arange(100))
    assert points.dtype == torch.float32
    assert points.shape == (100, *dataset.shape)
    picked = np.array([70, 2, 2, 99])
    torch.testing.assert_close(dataset.read(picked), points[picked], rtol=0, atol=0)
    for other in (open_dataset(name, "test", "", 0, 0, seed=3), open_dataset(name, "train", "", 0, 0, seed=4)):
        assert not (other.read(np.arange(100)) == points).any()


@pytest.mark.parametrize("name", NAMES)
def test_there_is_no_end(name):
    dataset = open_dataset(name, "train", "", 0, 0, seed=3)
    assert dataset.length is None
    assert torch.isfinite(dataset.read(np.array([2**40, 2**62]))).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_density_integrates_to_one(name):
    # A box around one of the rolls, which hold equal parts, or around everything.
    half_width, part = (0.17, 1.0 / len(ROLL_CENTRES)) if name == "multimodal_swissroll" else (1.0, 1.0)
    points = np.random.default_rng(0).uniform(-half_width, half_width, size=(10_000, 2))
    values = np.exp(TOY_DISTRIBUTIONS[name].log_density(points)) * (2.0 * half_width) ** 2 / part
    standard_error = values.std() / math.sqrt(len(points))
    assert standard_error < 0.05
    assert abs(values.mean() - 1.0) < 4.0 * standard_error


@pytest.mark.parametrize("name", NAMES)
def test_the_entropy_is_the_mean_of_the_negative_log_density(name):
    distribution = TOY_DISTRIBUTIONS[name]
    points = distribution.draw(Noise(0, "entropy", torch.arange(10_000))).numpy()
    surprise = -distribution.log_density(points)
    assert abs(surprise.mean() - distribution.entropy()) < 4.0 * surprise.std() / math.sqrt(len(points))
    assert surprise.std() / math.sqrt(len(points)) < 0.02


def test_the_entropy_of_the_diamond_is_that_of_separate_gaussians():
    # Centres are 12.5 standard deviations apart, so nine Gaussians do not feel each other.
    separate = math.log(9.0) + math.log(2.0 * math.pi * math.e * 0.04**2)
    assert TOY_DISTRIBUTIONS["diamond"].entropy() == pytest.approx(separate, abs=1e-7)


def test_the_density_of_the_diamond_at_a_centre():
    value = TOY_DISTRIBUTIONS["diamond"].log_density(np.zeros((1, 2)))[0]
    assert value == pytest.approx(-math.log(9.0 * 2.0 * math.pi * 0.04**2), abs=1e-12)


def test_the_density_of_the_roll_agrees_with_a_finer_quadrature():
    angles = np.linspace(1.5 * math.pi, 4.5 * math.pi, 400_001)
    spiral = 0.01 * np.stack([angles * np.cos(angles), angles * np.sin(angles)], axis=1)
    for angle, normal_offset in ((2.0 * math.pi, 0.001), (4.5 * math.pi, 0.0), (1.5 * math.pi, -0.003)):
        point = 0.01 * angle * np.array([math.cos(angle), math.sin(angle)]) + normal_offset
        integrand = np.exp(-((spiral - point) ** 2).sum(axis=1) / (2.0 * 0.002**2)) / (2.0 * math.pi * 0.002**2)
        expected = math.log(np.trapezoid(integrand, angles) / (3.0 * math.pi) / len(ROLL_CENTRES))
        for centre in ROLL_CENTRES:
            value = TOY_DISTRIBUTIONS["multimodal_swissroll"].log_density(point[None] + centre)[0]
            assert value == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_log_densities_far_from_all_points_are_finite(name):
    assert np.isfinite(TOY_DISTRIBUTIONS[name].log_density(np.array([[1.0, -1.0], [30.0, 5.0]]))).all()
