"""Parameters of the published Flow++ dequantizers under the names and in the layouts of ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch

from util.errors import UsageError

_COUPLING = r"MixLogisticAttnCoupling_(\d+)/"
_SHALLOW, _DEEP = r"ShallowProcessor_0/", r"DeepProcessor_0/"
_LAYERS: tuple[tuple[str, str], ...] = (
    (_COUPLING + r"(?:proj_in|c1)", r"steps.\1.coupling.input"),
    (_COUPLING + r"block\d+_(?:proj_out|c2)", r"steps.\1.coupling.output"),
    (_COUPLING + r"block(\d+)_conv_c1", r"steps.\1.coupling.blocks.\2.convolution.first"),
    (_COUPLING + r"block(\d+)_conv_a_proj", r"steps.\1.coupling.blocks.\2.convolution.context"),
    (_COUPLING + r"block(\d+)_conv_c2", r"steps.\1.coupling.blocks.\2.convolution.second"),
    (_COUPLING + r"block(\d+)_attn_proj1", r"steps.\1.coupling.blocks.\2.attention.project_in"),
    (_COUPLING + r"block(\d+)_attn_proj2", r"steps.\1.coupling.blocks.\2.attention.project_out"),
    (_SHALLOW + r"proj", r"context.input"),
    (_SHALLOW + r"c(\d+)_c1", r"context.blocks.\1.first"),
    (_SHALLOW + r"c(\d+)_c2", r"context.blocks.\1.second"),
    (_DEEP + r"proj", r"context.input"),
    (_DEEP + r"c(\d+)_c1", r"context.blocks.\1.convolution.first"),
    (_DEEP + r"c(\d+)_c2", r"context.blocks.\1.convolution.second"),
    (_DEEP + r"dqattn(\d+)_proj1", r"context.blocks.\1.attention.project_in"),
    (_DEEP + r"dqattn(\d+)_proj2", r"context.blocks.\1.attention.project_out"),
)
"""Published layer, our layer. Their parameters are W or V and g, and b."""
_NORMS: tuple[tuple[str, str], ...] = (
    (_COUPLING + r"block(\d+)_ln([12])", r"steps.\1.coupling.blocks.\2.norm_\3"),
    (_DEEP + r"dqln(\d+)", r"context.blocks.\1.norm_1"),
    (_DEEP + r"ln(\d+)", r"context.blocks.\1.norm_2"),
)
"""The same for layer normalisation."""

Layout = Callable[[torch.Tensor], torch.Tensor]


def _to_channels_first(image: torch.Tensor) -> torch.Tensor:
    return image.permute(2, 0, 1)


def _exchanged_kernel(kernel: torch.Tensor) -> torch.Tensor:
    """The public code applies the kernels of plain convolutions with height and width exchanged."""
    return kernel.permute(3, 2, 1, 0)


def _kernel(kernel: torch.Tensor) -> torch.Tensor:
    return kernel.permute(3, 2, 0, 1)


def _map_of_channels(matrix: torch.Tensor) -> torch.Tensor:
    return matrix.T[:, :, None, None]


def _transposed(matrix: torch.Tensor) -> torch.Tensor:
    return matrix.T


def _unchanged(values: torch.Tensor) -> torch.Tensor:
    return values


RULES: tuple[tuple[str, str, int, Layout], ...] = (
    *((layer + "_W", ours + ".weight", 4, _exchanged_kernel) for layer, ours in _LAYERS),
    *((layer + "_W", ours + ".weight", 2, _map_of_channels) for layer, ours in _LAYERS),
    *((layer + "_V", ours + ".direction", 4, _kernel) for layer, ours in _LAYERS),
    *((layer + "_g", ours + ".gain", 1, _unchanged) for layer, ours in _LAYERS),
    *((layer + "_b", ours + ".bias", 1, _unchanged) for layer, ours in _LAYERS),
    *((norm + "_g", ours + ".weight", 4, torch.flatten) for norm, ours in _NORMS),
    *((norm + "_b", ours + ".bias", 4, torch.flatten) for norm, ours in _NORMS),
    (_COUPLING + "pos_emb", r"steps.\1.coupling.position_embedding", 3, _to_channels_first),
    (_DEEP + "pos_emb_dq", "context.position_embedding", 3, _to_channels_first),
    (r"Norm_(\d+)/norm([01])_g", r"steps.\1.norms.\2.gain", 3, _to_channels_first),
    (r"Norm_(\d+)/norm([01])_b", r"steps.\1.norms.\2.bias", 3, _to_channels_first),
    (r"Pointwise_(\d+)/W([01])", r"steps.\1.pointwise.\2.weight", 2, _transposed),
)
"""Published path, our name, number of axes, change of layout."""


def dequantizer_parameters(published: Mapping[str, torch.Tensor], where: str) -> dict[str, torch.Tensor]:
    """The state_dict of ``models.flowpp.dequantizer.Dequantizer`` from the published parameters by path.

    Args:
        published: images and kernels with channels last, as Flax stores them.
        where: names the file in messages.

    Raises:
        UsageError: a path or a number of axes that no rule knows, or two paths for one parameter.
    """
    ours: dict[str, torch.Tensor] = {}
    for path, values in published.items():
        name, layout = _rule(path, values, where)
        if name in ours:
            raise UsageError(f"{where}: '{path}' is a second '{name}'; the file is damaged or of another network")
        ours[name] = layout(values)
    return ours


def _rule(path: str, values: torch.Tensor, where: str) -> tuple[str, Layout]:
    for pattern, name, n_axes, layout in RULES:
        match = re.fullmatch(pattern, path)
        if match is not None and values.ndim == n_axes:
            return match.expand(name), layout
    raise UsageError(
        f"{where}: '{path}' of shape {tuple(values.shape)} is no parameter of a Flow++ dequantizer; is it of another "
        "network?"
    )
