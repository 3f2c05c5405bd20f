"""Dequantized bounds of grey levels with a known distribution: never better than its entropy, and which is tighter."""

import math

import pytest
import torch

from diffusion.bits import PixelScale
from diffusion.continuous.gaussian import GaussianData
from diffusion.continuous.noise_schedule import LinearBeta
from diffusion.continuous.sub_vp import SubVariancePreserving
from diffusion.continuous.vp import VariancePreserving
from models.flowpp.dequantizer import Dequantizer
from tests.spelling import ClosedFormTimes, DequantizerSettings, dequantization_bound, initialize_from_data
from util.noise import Noise

SHAPE, N_PIXELS = (1, 2, 2), 4
MEAN, DEVIATION = 100.3, 0.6  # grey levels: of a pixel's continuous value, of which the grey level is the whole part
LEVELS = torch.arange(256, dtype=torch.float64)
PIXEL = torch.distributions.Normal(MEAN, DEVIATION)
PROBABILITIES = PIXEL.cdf(torch.tensor([*LEVELS, 256.0]).double()).diff()
ENTROPY = -N_PIXELS * torch.special.xlogy(PROBABILITIES, PROBABILITIES).sum().item()
SCALE = PixelScale()
WIDTH = 2 / 256  # of a grey level, in data units
DATA = GaussianData(
    torch.full((N_PIXELS,), MEAN * WIDTH - 1, dtype=torch.float64),
    (DEVIATION * WIDTH) ** 2 * torch.eye(N_PIXELS, dtype=torch.float64),
)
TO_LEVELS = -N_PIXELS * math.log(WIDTH)
"""From -log of a density in data units to -log of a density in grey levels."""


def draw_images(n: int, step: int = 0) -> tuple[torch.Tensor, Noise]:
    noise = Noise(0, "test", torch.arange(n), step)
    values = torch.searchsorted(PROBABILITIES.cumsum(0), noise.uniform(*SHAPE, dtype=torch.float64))
    return values.to(torch.uint8), noise


def seen(images: torch.Tensor) -> torch.Tensor:
    """What the dequantizer sees: any function of the grey levels will do, and this one spreads the few that occur."""
    return (images.float() - 96) / 8


def mean_and_error(values: torch.Tensor) -> tuple[float, float]:
    return values.mean().item(), (values.std() / len(values) ** 0.5).item()


def exact_bound(network, images: torch.Tensor, noise: Noise) -> torch.Tensor:
    """The bound with the exact density of the continuous values."""
    if network is None:
        x, minus_log_q = SCALE.dequantize(images, noise.uniform(*SHAPE, dtype=torch.float64)), 0.0
    else:
        u, minus_log_q = network(noise.normal(*SHAPE), seen(images))
        x = SCALE.dequantize(images, u)
    # The tails beyond 0 and 256 hold nothing here.
    return -DATA.log_density(x.flatten(1)) + TO_LEVELS - minus_log_q


@pytest.fixture(scope="module")
def dequantizer():
    """Trained a little on the exact density."""
    torch.manual_seed(0)
    sizes = {"n_couplings": 2, "n_filters": 8, "n_blocks": 1, "n_components": 2, "n_heads": 1}
    network = Dequantizer(DequantizerSettings(SHAPE, **sizes, context_channels=4, n_context_blocks=1))
    images, noise = draw_images(256)
    initialize_from_data(network, (noise.normal(*SHAPE), seen(images)), lambda sums: sums)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.03)
    for step in range(1, 61):
        optimizer.zero_grad()
        exact_bound(network, *draw_images(64, step)).mean().backward()
        optimizer.step()
    return network


def test_the_distribution_has_an_entropy():
    assert PROBABILITIES.sum().item() == pytest.approx(1, abs=1e-12)
    assert 3 < ENTROPY < 5


def test_a_trained_dequantizer_is_tighter_than_uniform_noise_and_no_better_than_the_entropy(dequantizer):
    images, noise = draw_images(20_000)
    with torch.no_grad():
        uniform, uniform_error = mean_and_error(exact_bound(None, images, noise))
        trained, trained_error = mean_and_error(exact_bound(dequantizer, images, noise))
    print(f"entropy {ENTROPY:.4f}, uniform noise {uniform:.4f} +- {uniform_error:.4f}", end=", ")
    print(f"Flow++ {trained:.4f} +- {trained_error:.4f}")
    assert uniform > ENTROPY - 3 * uniform_error
    assert trained > ENTROPY - 3 * trained_error
    assert trained < uniform - 0.15


@pytest.mark.parametrize("kind", [VariancePreserving, SubVariancePreserving])
def test_the_training_objective_is_no_better_than_the_entropy(dequantizer, kind):
    """With the exact score the objective bounds what the exact density gives, and by little."""
    process = kind(LinearBeta(0.1, 19.9))
    exact = DATA.score(process)

    def score(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return exact(u.flatten(1), t).reshape(u.shape)

    eps = 1e-5
    images, noise = draw_images(20_000)
    with torch.no_grad():
        u, minus_log_q = dequantizer(noise.normal(*SHAPE), seen(images))
        x = SCALE.dequantize(images, u)
        terms = dequantization_bound(
            process, score, x, minus_log_q, noise, smallest_time=eps, importance=ClosedFormTimes(process, eps)
        )
        direct = -DATA.log_density(x.flatten(1)) - minus_log_q
    value, error = mean_and_error(sum(terms.values()) + TO_LEVELS)
    print(f"entropy {ENTROPY:.4f}, bound {value:.4f} +- {error:.4f}")
    assert value > ENTROPY - 3 * error
    gap, error = mean_and_error(sum(terms.values()) - direct)
    assert -3 * error < gap < 3 * error + 0.1
