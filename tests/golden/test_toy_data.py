"""Statistics of the toy data against those recorded from the public CLD code."""

import math

import numpy as np
import pytest

from tests.golden import vectors
from util.data.dataset import open_dataset
from util.data.toy import ROLL_CENTRES

FILE = vectors.load("cld", "toy") if vectors.exists("cld", "toy") else {}
DATASETS = sorted({key.split("/")[0] for key in FILE})
# In standard errors of the difference of two independent samples.
LIMIT = 5.0


@pytest.fixture(scope="module", params=DATASETS)
def case(request):
    """Recorded statistics of one data set and as many points of ours, float64."""
    recorded = {key.split("/", 1)[1]: FILE[key] for key in FILE if key.startswith(request.param + "/")}
    dataset = open_dataset(request.param, "train", "", 0, 0, seed=0)
    return recorded, dataset.read(np.arange(int(recorded["n"]))).double().numpy()


def with_recorded(name):
    """Only the data sets of which this was recorded."""
    return pytest.mark.parametrize("case", [each for each in DATASETS if f"{each}/{name}" in FILE], indirect=True)


def nearest_centre(points):
    nearest = ((points[:, None] - ROLL_CENTRES) ** 2).sum(axis=-1).argmin(axis=1)
    return nearest, points - ROLL_CENTRES[nearest]


def assert_same_moments(points, mean, covariance):
    n = len(points)
    centred = points - points.mean(axis=0)
    products = centred[:, :, None] * centred[:, None, :]
    assert np.all(np.abs(points.mean(axis=0) - mean) < LIMIT * np.sqrt(2.0 * centred.var(axis=0) / n))
    assert np.all(np.abs(np.cov(points.T) - covariance) < LIMIT * np.sqrt(2.0 * products.var(axis=0) / n))


def assert_same_histogram(ours, recorded, n):
    """Total variation distance within 1.5 times what two correct samples have on average."""
    expected = 0.5 * np.sqrt(4.0 * (recorded / n) / (math.pi * n)).sum()
    assert 0.5 * np.abs(ours - recorded).sum() / n < 1.5 * expected


def assert_same_count(ours, recorded):
    assert abs(ours - recorded) < LIMIT * math.sqrt(ours + recorded + 1)


def test_the_file_has_data_sets():
    assert DATASETS


def test_moments(case):
    recorded, points = case
    assert_same_moments(points, recorded["mean"], recorded["cov"])


def test_histogram_in_the_plane(case):
    recorded, points = case
    ours = np.histogram2d(*points.T, bins=recorded["edges"])[0]
    assert_same_histogram(ours, recorded["hist"], len(points))
    assert_same_count(len(points) - ours.sum(), recorded["outside"])


def test_extreme_values(case):
    """A sample has few points beyond the extremes of another one of the same size: 20 or more have p = 1e-6."""
    recorded, points = case
    assert np.all((points < recorded["min"]).sum(axis=0) < 20)
    assert np.all((points > recorded["max"]).sum(axis=0) < 20)
    for axis in (0, 1):
        marginal = recorded["hist"].sum(axis=1 - axis)
        assert marginal[recorded["edges"][1:] < points[:, axis].min()].sum() < 20
        assert marginal[recorded["edges"][:-1] > points[:, axis].max()].sum() < 20


@with_recorded("radius_hist")
def test_histogram_of_radii(case):
    recorded, points = case
    ours = np.histogram(np.linalg.norm(points, axis=1), bins=recorded["radius_edges"])[0]
    assert_same_histogram(ours, recorded["radius_hist"], len(points))


@with_recorded("cluster_counts")
def test_clusters(case):
    recorded, points = case
    nearest, folded = nearest_centre(points)
    for ours, theirs in zip(np.bincount(nearest), recorded["cluster_counts"], strict=True):
        assert_same_count(ours, theirs)
    assert_same_moments(folded, recorded["folded_mean"], recorded["folded_cov"])
    ours = np.histogram2d(*folded.T, bins=recorded["folded_edges"])[0]
    assert_same_histogram(ours, recorded["folded_hist"], len(points))
    assert_same_count(len(points) - ours.sum(), recorded["folded_outside"])
    radii = np.histogram(np.linalg.norm(folded, axis=1), bins=recorded["folded_radius_edges"])[0]
    assert_same_histogram(radii, recorded["folded_radius_hist"], len(points))
