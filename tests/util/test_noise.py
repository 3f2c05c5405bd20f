"""The counter-based generator against its published test vectors, and what the rest of the project relies on."""

import pytest
import torch

from util.noise import Noise, derive_seed, philox

# Known answers of Philox4x32-10, from the Random123 distribution (Salmon et al., SC 2011).
KNOWN = [
    ([0] * 4, (0, 0), ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]),
    ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), ["408f276d", "41c83b0e", "a20bc7c6", "6d5451fd"]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        (0xA4093822, 0x299F31D0),
        ["d16cfe09", "94fdcceb", "5001e420", "24126ea1"],
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter: list[int], key: tuple[int, int], expected: list[str]) -> None:
    words = philox([torch.tensor([word]) for word in counter], key)
    assert [f"{int(word):08x}" for word in words] == expected


def test_a_sample_draws_the_same_in_any_batch() -> None:
    whole, part = Noise(3, "p", torch.arange(100)), Noise(3, "p", torch.arange(40, 60))
    for draw in ("normal", "uniform", "rademacher"):
        assert torch.equal(getattr(whole, draw)(3, 5)[40:60], getattr(part, draw)(3, 5))


@pytest.mark.parametrize("other", [(4, "p", 0), (3, "q", 0), (3, "p", 1)])
def test_seed_purpose_and_step_are_independent(other: tuple[int, str, int]) -> None:
    indices = torch.arange(1000)
    a = Noise(3, "p", indices, 0).normal(8).flatten()
    b = Noise(other[0], other[1], indices, other[2]).normal(8).flatten()
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 5 / len(a) ** 0.5


def test_successive_draws_differ() -> None:
    noise = Noise(0, "p", torch.arange(10))
    assert not torch.equal(noise.normal(4), noise.normal(4))


def test_normals_have_the_moments_of_normals() -> None:
    values = Noise(1, "p", torch.arange(20_000)).normal(25, dtype=torch.float64).flatten()
    n = len(values)
    assert abs(values.mean()) < 5 / n**0.5
    assert abs(values.var() - 1) < 5 * (2 / n) ** 0.5
    assert abs((values**4).mean() - 3) < 5 * (96 / n) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniforms_fill_the_half_open_interval(dtype: torch.dtype) -> None:
    values = Noise(1, "p", torch.arange(50_000)).uniform(4, dtype=dtype).flatten().double()
    assert values.min() >= 0
    assert values.max() < 1
    counts = torch.histc(values, 10, 0, 1)
    assert ((counts - len(values) / 10) ** 2 / (len(values) / 10)).sum() < 40  # chi-squared, 9 degrees of freedom


def test_seeds_of_other_names_differ() -> None:
    seeds = {derive_seed(a, b) for a in range(100) for b in ("x", "y")}
    assert len(seeds) == 200
    assert all(0 <= seed < 2**63 for seed in seeds)
