"""What the Flow++ tests share: recorded arrays in our layout, and the tolerances."""

import numpy as np
import torch

from models.flowpp import logistic_mixture
from models.flowpp.bijections import SMALLEST_GAIN, ActivationNorm, PointwiseMap
from models.flowpp.coupling import MixtureCoupling
from models.flowpp.layers import Convolution, NormalizedConvolution

DTYPES = {"f32": torch.float32, "f64": torch.float64}
TOLERANCE = {"f32": 1e-4, "f64": 1e-9}
SUM_TOLERANCE = {"f32": 1e-5, "f64": 1e-10}
"""Of log-determinants, relative to the absolute values of their terms: these may cancel to almost nothing."""
LARGEST_LOG_ODDS = {"f32": 8.0, "f64": 15.0}
"""Beyond this the public logit is at one of its floors, or has lost the digits that the tolerance asks for."""


def assert_near(
    actual: torch.Tensor, expected: np.ndarray, tolerance: float, sizes: torch.Tensor | None = None
) -> None:
    """Relative to the largest entry, or to the largest of ``sizes``."""
    actual = actual.detach().double().numpy()
    assert actual.shape == expected.shape
    assert np.isfinite(actual).all()
    scale = np.abs(expected).max() if sizes is None else sizes.max().item()
    assert np.abs(actual - expected).max() <= tolerance * scale


def absolute_sum(*terms: torch.Tensor) -> torch.Tensor:
    """What the absolute values of the terms, each (B, ...), add up to: (B,)."""
    return sum(values.detach().double().abs().flatten(1).sum(1) for values in terms)


def size_of_terms(module: torch.nn.Module, x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    """The absolute values of the terms of the log-determinant that a module gives for these inputs, (B,)."""
    if isinstance(module, MixtureCoupling):
        half, context = others
        log_slope, _, mixture = module.parameters_of_map(x, context)
        below, above = logistic_mixture.log_distribution(half, mixture)
        return absolute_sum(log_slope, logistic_mixture.log_density(half, mixture), below, above)
    if isinstance(module, ActivationNorm):
        return absolute_sum(module.gain.clamp(min=SMALLEST_GAIN).log().expand(len(x), -1, -1, -1))
    assert isinstance(module, PointwiseMap)
    weight = module.weight.detach().double()
    # What ln|det W| moves by, to first order, when every entry of W moves by its own size.
    size = (torch.linalg.inv(weight).T * weight).abs().sum()
    return (x.shape[2] * x.shape[3] * size).expand(len(x))


def image(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """(B, H, W, C, ...) to (B, C, H, W, ...)."""
    return torch.from_numpy(array).to(dtype).movedim(3, 1)


def channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.movedim(1, 3)


def under(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, torch.Tensor]:
    return {
        key.removeprefix(prefix): torch.from_numpy(array) for key, array in arrays.items() if key.startswith(prefix)
    }


def plain_layer(weight: torch.Tensor, bias: torch.Tensor, dtype: torch.dtype) -> Convolution:
    """A layer without weight normalisation from the recorded arrays; (in, out) or (3, 3, in, out)."""
    if weight.ndim == 2:
        weight = weight[None, None]
    layer = Convolution(weight.shape[2], weight.shape[3], weight.shape[0]).to(dtype)
    layer.load_state_dict({"weight": weight.permute(3, 2, 1, 0), "bias": bias})
    return layer


def normalized_layer(
    direction: torch.Tensor, gain: torch.Tensor, bias: torch.Tensor, dtype: torch.dtype
) -> NormalizedConvolution:
    """A layer with weight normalisation from the recorded arrays."""
    layer = NormalizedConvolution(direction.shape[2], direction.shape[3]).to(dtype)
    layer.load_state_dict({"direction": direction.permute(3, 2, 0, 1), "gain": gain, "bias": bias})
    return layer
