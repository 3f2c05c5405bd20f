"""What the recorded ScoreFlow files have in common: processes, the toy score, layouts, precisions."""

from collections.abc import Callable

import numpy as np
import torch

from diffusion.continuous.chain import DiscreteProcess
from diffusion.continuous.noise_schedule import LinearBeta
from diffusion.continuous.sub_vp import SubVariancePreserving
from diffusion.continuous.ve import VarianceExploding
from diffusion.continuous.vp import VariancePreserving
from diffusion.tensors import expand
from tests.golden.cld_setup import Arrays, Comparison
from tests.spelling import ClosedFormTimes

PRECISIONS = {"f32": torch.float32, "f64": torch.float64}
TOLERANCES = {"f32": 1e-4, "f64": 1e-9}
LOOSE_TOLERANCES = {"f32": 5e-4, "f64": 1e-9}
"""For what is divided by a small standard deviation, divergences and offsets."""

Network = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def process_names(arrays: Arrays) -> list[str]:
    """The processes of a file, by the prefix of their keys."""
    return sorted(
        {key.split("/")[0] for key in arrays if key.endswith(("/beta_min", "/sigma_min")) and not key.startswith("in/")}
    )


def make_process(arrays: Arrays, name: str, *, linearised_start: bool = True, prefix: str = "") -> DiscreteProcess:
    """The process of a name such as "vp" or "subvp_alt", with the settings under ``prefix`` or the name."""

    def setting(key: str) -> float:
        return float(arrays[f"{prefix or name}/{key}"])

    if name.startswith("ve"):
        return VarianceExploding(setting("sigma_min"), setting("sigma_max"))
    schedule = LinearBeta(setting("beta_min"), setting("beta_max") - setting("beta_min"))
    kind = SubVariancePreserving if name.startswith("subvp") else VariancePreserving
    return kind(schedule, linearised_start)


def channels_first(array: np.ndarray) -> torch.Tensor:
    """(..., H, W, C) as a tensor (..., C, H, W)."""
    return torch.from_numpy(array).movedim(-1, -3)


def channels_last(tensor: torch.Tensor) -> torch.Tensor:
    """(..., C, H, W) as (..., H, W, C), the layout of the files."""
    return tensor.detach().movedim(-3, -1)


def shifted(x: torch.Tensor) -> torch.Tensor:
    """The cyclic shift of (B, C, H, W) by a pixel along the width."""
    return x.roll(1, dims=-1)


def toy_score(arrays: Arrays, process: DiscreteProcess, precision: str) -> Network:
    """-(a x + b t + c tanh(R x)), divided by 1 + sigma^2 for VE, computed in the given precision."""
    a, b, c = (float(value) for value in arrays["in/score_abc"])

    def score(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        x, t = x.to(PRECISIONS[precision]), t.to(PRECISIONS[precision])
        value = -(a * x + b * expand(t, x) + c * shifted(x).tanh())
        return value / (1 + expand(process.sigma(t), x) ** 2) if isinstance(process, VarianceExploding) else value

    return score


def uniform_of_time(arrays: Arrays, name: str) -> torch.Tensor:
    """The uniform numbers that give the recorded uniform times."""
    eps = float(arrays[f"{name}/eps"])
    return (torch.from_numpy(arrays[f"{name}/t_uniform"]).double() - eps) / (1 - eps)


def uniform_of_quantile(quantile: np.ndarray, importance: ClosedFormTimes) -> torch.Tensor:
    """The uniform numbers that give the recorded quantiles of the cumulative weight."""
    return torch.from_numpy(quantile).double() / importance.total


def comparison(arrays: Arrays, precision: str, name: str) -> Comparison:
    """Comparison with the results of a process in a precision."""
    return Comparison(arrays, f"{precision}/{name}/")
