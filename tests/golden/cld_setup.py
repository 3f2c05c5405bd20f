"""What the recorded CLD and VP files describe: their process, their test network, their comparisons."""

from collections.abc import Iterator

import numpy as np
import torch

from diffusion.continuous.cld import CriticallyDampedLangevin
from diffusion.continuous.noise_schedule import LinearBeta
from diffusion.continuous.process import Process
from diffusion.continuous.vp import VariancePreserving
from tests.golden.vectors import exists, load

Arrays = dict[str, np.ndarray]


def make_process(arrays: Arrays, objective: str = "hsm") -> Process:
    """The process with the settings of a file: CLD where it has a mass, VP otherwise."""
    schedule = LinearBeta(float(arrays["hp/beta0"]), float(arrays["hp/beta1"]))
    if "hp/m_inv" not in arrays:
        return VariancePreserving(schedule)
    m_inv, gamma, numerical_eps = (
        float(arrays[f"hp/{name}"]) for name in ("m_inv", "gamma", "numerical_eps")
    )
    return CriticallyDampedLangevin(schedule, m_inv, gamma, numerical_eps, objective)


class PointwiseNetwork:
    """y = z + a sin(z), z = W u + b t at every pixel, in float32; keeps the times it is called with."""

    def __init__(self, arrays: Arrays, prefix: str) -> None:
        self.W, self.b, self.a = (torch.from_numpy(arrays[f"{prefix}/{name}"]) for name in "Wba")
        self.times: list[float] = []

    def __call__(self, u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        assert u.dtype == t.dtype == torch.float32
        self.times.append(t[0].item())
        per_channel = (-1, *[1] * (u.dim() - 2))
        z = torch.einsum("ck,bk...->bc...", self.W, u)
        z = z + self.b.reshape(per_channel) * t.reshape(-1, *[1] * (u.dim() - 1))
        return z + self.a.reshape(per_channel) * z.sin()


class Comparison:
    """Compares results with the arrays of a file, and knows which have not been compared."""

    def __init__(self, arrays: Arrays, prefix: str) -> None:
        self.arrays, self.prefix = arrays, prefix
        self.remaining = {key for key in arrays if key.startswith(prefix)}

    def close(self, name: str, actual: object, tolerance: float) -> None:
        """Deviations at most ``tolerance`` times the largest entry of the recorded array."""
        expected = np.asarray(self.arrays[self.prefix + name], dtype=np.float64)
        actual = np.asarray(actual, dtype=np.float64)
        assert actual.shape == expected.shape, f"{self.prefix + name}: {actual.shape} != {expected.shape}"
        atol = tolerance * np.abs(expected).max()
        np.testing.assert_allclose(actual, expected, rtol=0, atol=atol, equal_nan=False, err_msg=name)
        self.remaining.discard(self.prefix + name)

    def relative(self, name: str, actual: object, tolerance: float, atol: np.ndarray | float = 0.0) -> None:
        """Deviations at most ``tolerance`` times each entry, plus ``atol``."""
        expected = np.asarray(self.arrays[self.prefix + name], dtype=np.float64)
        actual = np.asarray(actual, dtype=np.float64)
        assert actual.shape == expected.shape, f"{self.prefix + name}: {actual.shape} != {expected.shape}"
        deviation = np.abs(actual - expected)
        assert (deviation <= tolerance * np.abs(expected) + atol).all(), f"{name}: {actual} != {expected}"
        self.remaining.discard(self.prefix + name)

    def equal(self, name: str, actual: int) -> None:
        assert actual == self.arrays[self.prefix + name].item(), name
        self.remaining.discard(self.prefix + name)

    def nothing_left(self, *inputs: str) -> None:
        """Every array has been compared but the named inputs."""
        assert self.remaining <= {self.prefix + name for name in inputs}


def variants(arrays: Arrays) -> list[str]:
    """Names of the runs in a sampler or likelihood file."""
    prefixes = {key.split("/")[0] for key in arrays if "/" in key}
    return sorted(prefixes - {"hp", "prior", "net", "net_mixed", "net_plain"})


def runs(*names: str) -> Iterator[tuple[str, str, bool]]:
    """Every (file, variant, published_behaviour): files as published, and their corrected twins where there
    are any."""
    for name in names:
        for file, published_behaviour in ((name, True), (f"{name}_corrected", False)):
            if published_behaviour or exists("cld", file):
                for variant in variants(load("cld", file)):
                    yield file, variant, published_behaviour
