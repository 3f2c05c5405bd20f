"""What the recorded INDM files describe: their processes, their score networks, their comparisons."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch

from diffusion.continuous.noise_schedule import LinearBeta
from diffusion.continuous.process import Process, ScoreFunction
from diffusion.continuous.ve import VarianceExploding
from diffusion.continuous.vp import VariancePreserving
from diffusion.tensors import expand
from models.residual_flow import FlowSettings, InvertibleFlow
from tests.golden import vectors

Arrays = dict[str, np.ndarray]

FLOAT64 = 1e-8
FLOAT64_FROM_FLOAT32 = 3e-8
"""Of values that a float32 input (a time) went into, in float64 runs."""


load = lru_cache(maxsize=None)(vectors.load)
"""``vectors.load``, each file read once; its arrays are not to be changed."""


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


def tiny_flow_settings() -> FlowSettings:
    """Of the flow that all files but those of single modules have."""
    recorded = load("indm", "flow_tiny")
    prior = "state_dict/discriminator.prior.flow.steps."
    steps = {int(key.removeprefix(prior).split(".")[0]) for key in recorded if key.startswith(prior)}
    return FlowSettings(
        image_channels=recorded["in/img_uint8"].shape[1],
        image_size=int(recorded["hyper/image_size"]),
        squeeze_first=bool(recorded["hyper/squeeze_first"]),
        n_blocks=tuple(recorded["hyper/nblocks"].tolist()),
        hidden_channels=int(recorded["hyper/intermediate_dim"]),
        code_size=recorded[f"{prior}0.actnorm.bias"].shape[0],
        encoder_planes=tuple(recorded["hyper/encoder_hidden_planes"].tolist()),
        encoder_out_planes=int(recorded["hyper/encoder_out_planes"]),
        prior_hidden_size=int(recorded["hyper/prior_hidden"]),
        n_prior_steps=len(steps),
    )


@lru_cache(maxsize=1)
def _initial_flow() -> InvertibleFlow:
    return InvertibleFlow(tiny_flow_settings())


def tiny_flow(arrays: Arrays, dtype: torch.dtype) -> InvertibleFlow:
    """The flow with the weights of a file, in training mode."""
    flow = copy.deepcopy(_initial_flow())
    prefix = "state_dict/"
    weights = {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
    flow.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return flow.to(dtype)


class RecordedNoise:
    """Recorded random numbers in place of a ``Noise``: each call gives the next, which has to have the shape asked for.

    Args:
        values: with a batch axis, in the order of use.
        dtype: in which they are given out, whatever is asked for.
    """

    def __init__(self, values: list[torch.Tensor], dtype: torch.dtype) -> None:
        self.values = list(values)
        self.dtype = dtype

    def _next(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:  # noqa: ARG002
        value = self.values.pop(0)
        assert tuple(value.shape[1:]) == shape
        return value.to(self.dtype)

    normal = uniform = rademacher = _next


def flow_noise(arrays: Arrays, prefix: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What ``draw_flow_noise`` draws for each sample and for all of them, as recorded under a prefix ending with
    "noise/"."""
    blocks = sorted({key.removeprefix(prefix).split("/")[0] for key in arrays if key.startswith(f"{prefix}block")})
    code = torch.from_numpy(arrays[f"{prefix}h_eps"]).flatten(1)
    probes = [torch.from_numpy(arrays[f"{prefix}{block}/vareps"]).flatten(1) for block in blocks]
    rate = 2.0
    uniforms = []
    for block in blocks:
        count = int(arrays[f"{prefix}{block}/n_poisson"].item())
        # A uniform number in the middle of those that give this count.
        probabilities = [math.exp(-rate) * rate**n / math.factorial(n) for n in range(count + 1)]
        uniforms.append(sum(probabilities) - probabilities[-1] / 2)
    return [code, torch.cat(probes, dim=1)[:, None]], [torch.tensor([uniforms], dtype=torch.float64)]


def close(actual: object, expected: np.ndarray, tolerance: float, name: str = "") -> None:
    """Deviations at most ``tolerance`` times the largest entry of the recorded array."""
    if isinstance(actual, torch.Tensor):
        actual = actual.detach().numpy()
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"{name}: {actual.shape} != {expected.shape}"
    largest = max(np.abs(expected).max(), np.finfo(float).tiny)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * largest, equal_nan=False, err_msg=name)
