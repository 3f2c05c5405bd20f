"""Discrete schedules, and the steps that few-step samplers pick from them."""

import re

import numpy as np
import pytest
import torch

from diffusion.discrete.schedule import choose_labels
from tests.golden import vectors
from tests.spelling import make_schedule

TOLERANCE = 2e-6
BETA_TOLERANCE = 5e-4


@pytest.fixture(scope="module")
def recorded():
    return vectors.load("hsivi", "schedule")


def relative_error(actual: torch.Tensor, expected: np.ndarray) -> float:
    return float(np.abs(actual.numpy() / expected.astype(np.float64) - 1).max())


def n_steps(recorded, kind: str) -> int:
    return len(recorded[f"{kind}/full/alphas_bar"])


def subsets(recorded) -> list[tuple[str, str, int]]:
    matches = (re.fullmatch(r"(\w+)/(\w+)/n(\d+)/timesteps", key) for key in recorded)
    return [(match[1], match[2], int(match[3])) for match in matches if match]


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_whole_schedules(recorded, kind):
    published = make_schedule(kind, n_steps(recorded, kind), published_behaviour=True)
    exact = make_schedule(kind, n_steps(recorded, kind))
    for ours, theirs in (
        ("alphas_bar", "alphas_bar"),
        ("one_minus_alphas_bar", "one_minus_alpha_bars"),
    ):
        values = recorded[f"{kind}/full/{theirs}"]
        assert relative_error(getattr(published, ours), values) <= TOLERANCE
        assert np.abs(getattr(exact, ours).numpy() - values).max() <= TOLERANCE


def test_chosen_steps(recorded):
    found = subsets(recorded)
    assert {kind for kind, _, _ in found} == {"linear", "cosine"}
    assert {skip_type for _, skip_type, _ in found} == {"uniform", "quad"}
    for kind, skip_type, n in found:
        group = {key: recorded[f"{kind}/{skip_type}/n{n}/{key}"] for key in ("timesteps", "alphas_bar", "betas")}
        labels = choose_labels(skip_type, n, n_steps(recorded, kind))
        # A "uniform" grid of the public code goes on beyond the labels that are used.
        np.testing.assert_array_equal(labels.numpy(), group["timesteps"][:n])
        chosen = make_schedule(kind, n_steps(recorded, kind), published_behaviour=True).subset(labels)
        np.testing.assert_array_equal(chosen.labels.numpy(), group["timesteps"][:n])
        one_minus = recorded[f"{kind}/{skip_type}/n{n}/one_minus_alpha_bars"][:n]
        assert relative_error(chosen.alphas_bar, group["alphas_bar"][:n]) <= TOLERANCE
        assert relative_error(chosen.one_minus_alphas_bar, one_minus) <= TOLERANCE
        # The first beta of the public code is padding.
        assert relative_error(chosen.betas[1:], group["betas"][1:n]) <= BETA_TOLERANCE
