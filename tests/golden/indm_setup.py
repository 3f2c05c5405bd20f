"""What the recorded INDM files describe: their processes, their score networks, their comparisons."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from diffusion.noise_schedule import LinearBeta
from diffusion.process import Process, ScoreFunction, expand
from diffusion.ve import VarianceExploding
from diffusion.vp import VariancePreserving

Arrays = dict[str, np.ndarray]

FLOAT64 = 1e-8
FLOAT64_FROM_FLOAT32 = 3e-8
"""Of values that a float32 input (a time) went into, in float64 runs."""


def make_process(name: str, parameters: np.ndarray) -> Process:
    """The process "ve" with its smallest and largest standard deviation, or "vp" with beta at both ends."""
    smallest, largest = (float(value) for value in parameters)
    if name == "ve":
        return VarianceExploding(smallest, largest)
    return VariancePreserving(LinearBeta(smallest, largest - smallest))


def toy_network(abc: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The recorded stand-in for a VP score network, of state and label 999 t."""
    a, b, c = abc
    return lambda y, label: a * y + b * y.sin() + c * expand(label.to(y.dtype) / 999, y)


def toy_score(name: str, process: Process, abc: torch.Tensor) -> ScoreFunction:
    """The score that the recorded stand-in networks stand for, in the dtype of the state; differentiable in ``abc``."""
    network = toy_network(abc)

    def score(y: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        sigma = expand(process.kernel_factor(t)[..., 0, 0], y)
        if name == "vp":
            return -network(y, 999 * t) / sigma.to(y.dtype)
        return -network(y, torch.full_like(t, 999.0)) / (1 + sigma**2).to(y.dtype)

    return score


def close(actual: object, expected: np.ndarray, tolerance: float, name: str = "") -> None:
    """Deviations at most ``tolerance`` times the largest entry of the recorded array."""
    if isinstance(actual, torch.Tensor):
        actual = actual.detach().numpy()
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"{name}: {actual.shape} != {expected.shape}"
    largest = max(np.abs(expected).max(), np.finfo(float).tiny)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * largest, equal_nan=False, err_msg=name)
