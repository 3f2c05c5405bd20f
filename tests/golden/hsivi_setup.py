"""What the recorded HSIVI files describe: their grid, their stand-in networks, their comparisons."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from diffusion.discrete.hsivi import Hierarchy, make_hierarchy

Arrays = Mapping[str, np.ndarray]


class StandIn(nn.Module):
    """w0 x + w1 tanh(x) + w2 tau x + w3 tau, tau the label in thousands."""

    def __init__(self, weights: np.ndarray, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(weights, dtype=dtype))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        tau = (t / 1000).to(x.dtype)[:, None, None, None]
        return self.w[0] * x + self.w[1] * x.tanh() + self.w[2] * tau * x + self.w[3] * tau


def recorded_hierarchy(arrays: Arrays, prefix: str, eta: float, n_points: int, dtype: torch.dtype) -> Hierarchy:
    """The hierarchy on the recorded grid, of which uniform ones have more points than are used."""
    labels = torch.from_numpy(arrays[f"{prefix}timesteps"][:n_points])
    return make_hierarchy(labels, torch.from_numpy(arrays[f"{prefix}one_minus_alpha_bars"][:n_points]).to(dtype), eta)


def close(actual: torch.Tensor, expected: np.ndarray, tolerance: float, what: str = "") -> None:
    """Deviations at most ``tolerance`` times the largest entry of the recorded array."""
    actual_array = actual.detach().double().numpy()
    expected = np.asarray(expected, dtype=np.float64)
    assert actual_array.shape == expected.shape, f"{what}: {actual_array.shape} != {expected.shape}"
    largest = float(np.abs(expected).max())
    np.testing.assert_allclose(actual_array, expected, rtol=0, atol=tolerance * largest, equal_nan=False, err_msg=what)
