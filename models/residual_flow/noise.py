"""Every random number of one pass through the flow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch

from models.residual_flow.log_determinant import poisson_counts
from util.noise import Noise


@dataclass(frozen=True)
class FlowNoise:
    """The random numbers, in the flow's order of blocks.

    Attributes:
        code: standard normal, (B, code_size).
        probes: standard normal, one (R, B, C, H, W) for each block at the block's own shape; R estimates are averaged.
        counts: Poisson numbers, one for each block, the same for all samples and ranks.
    """

    code: torch.Tensor
    probes: tuple[torch.Tensor, ...]
    counts: tuple[int, ...]


class _Flow(Protocol):
    @property
    def code_size(self) -> int: ...

    @property
    def block_shapes(self) -> list[tuple[int, int, int]]: ...

    @property
    def poisson_rates(self) -> list[float]: ...


def draw_flow_noise(
    flow: _Flow, noise: Noise, shared: Noise, n_probes: int = 1, dtype: torch.dtype = torch.float32
) -> FlowNoise:
    """The noise of one pass.

    Args:
        flow: an InvertibleFlow.
        noise: one entry for each sample.
        shared: a stream with a single entry, the same on all ranks, best on the CPU: the host needs the counts.
        n_probes: R.
        dtype: of the draws.
    """
    code = noise.normal(flow.code_size, dtype=dtype)
    sizes = [math.prod(shape) for shape in flow.block_shapes]
    values = noise.normal(n_probes, sum(sizes), dtype=dtype).transpose(0, 1)
    probes = tuple(
        part.unflatten(2, shape) for part, shape in zip(values.split(sizes, dim=2), flow.block_shapes, strict=True)
    )
    uniforms = shared.uniform(len(flow.block_shapes), dtype=torch.float64)[0]
    return FlowNoise(code, probes, tuple(poisson_counts(uniforms, flow.poisson_rates)))
