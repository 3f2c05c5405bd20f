"""What the recorded i-DODE files describe: their schedules, their toy network, their comparisons."""

import numpy as np
import torch

from diffusion.log_snr.schedule import LogSnrSchedule, StraightPath, VariancePreservingPath
from diffusion.log_snr.velocity import NoisePrediction, Parameterisation, VelocityPrediction
from tests.golden.vectors import load

Arrays = dict[str, np.ndarray]

DTYPES = {"f32": torch.float32, "f64": torch.float64}
TOLERANCE = {"f32": 1e-4, "f64": 1e-9}


def groups(name: str) -> list[str]:
    """The schedules that a file holds."""
    return sorted({key.split("/")[0] for key in load("idode", name) if key.endswith("/is_SP")})


def make_schedule(arrays: Arrays, group: str) -> LogSnrSchedule:
    kind = StraightPath if arrays[f"{group}/is_SP"] else VariancePreservingPath
    return kind(float(arrays[f"{group}/gamma_min"]), float(arrays[f"{group}/gamma_max"]))


def images(array: np.ndarray) -> torch.Tensor:
    """(..., H, W, C) as (..., C, H, W)."""
    return torch.from_numpy(array.copy()).movedim(-1, -3)


class ToyNetwork:
    """F(z, gamma) = a z + b gamma + c tanh(z shifted by a pixel along the width), in ``dtype``; keeps its calls."""

    def __init__(self, arrays: Arrays, velocity: bool, dtype: torch.dtype) -> None:
        self.a, self.b, self.c = arrays["in/net_abc" if velocity else "in/noise_net_abc"].tolist()
        self.dtype = dtype
        self.calls: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def __call__(self, z: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
        z, gamma = z.to(self.dtype), gamma.to(self.dtype)
        output = self.a * z + self.b * gamma[:, None, None, None] + self.c * z.roll(1, dims=-1).tanh()
        self.calls.append((z, gamma, output))
        return output


def parameterisation(velocity: bool) -> Parameterisation:
    return VelocityPrediction() if velocity else NoisePrediction()


def assert_near(actual: object, expected: np.ndarray, tolerance: float, name: str) -> None:
    """Relative to the largest entry; images of ``expected`` are NHWC where ``actual`` has channels first."""
    if isinstance(actual, torch.Tensor):
        actual = actual.detach().double().numpy()
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    if actual.ndim >= 4 and actual.shape != expected.shape:
        actual = np.moveaxis(actual, -3, -1)
    assert actual.shape == expected.shape, name
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale, equal_nan=False, err_msg=name)
