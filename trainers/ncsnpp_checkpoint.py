"""Checkpoints of NCSN++ networks, as the published CLD-SGM and INDM programs write them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from models.ncsnpp import NCSNpp
from models.ncsnpp_settings import NCSNppSettings
from util.errors import UsageError
from util.foreign_checkpoint import (
    average_by_order,
    check_network,
    check_tensor,
    entry,
    own_storage,
    read_foreign,
    without_prefix,
)
from util.named_shapes import shapes

Shapes = dict[str, tuple[int, ...]]

_SIGNS = {"block": ("Conv_", "Dense_0", "GroupNorm_1"), "attention": ("NIN_",), "pyramid": ("Conv2d_0",)}
"""What names within a module of more than one layer begin with."""


def read_ncsnpp(path: Path) -> tuple[int, dict[str, torch.Tensor], dict[str, Any]]:
    """Step, network and average of a checkpoint.

    Its entries: ``model``, the state_dict behind data-parallel training (prefix ``module.``); ``ema`` with ``decay``,
    ``num_updates`` and ``shadow_params``, a list without names of the averages of all parameters but the Fourier
    frequencies, in the order of ``model``; ``step``; ``optimizer``, which is left behind.

    Raises:
        UsageError: for anything missing, left over, of another shape, or not finite.
    """
    checkpoint, source = read_foreign(path), str(path)
    network = without_prefix(entry(checkpoint, "model", Mapping, source), source)
    for name, tensor in network.items():
        check_tensor(tensor, f"{source}: model {name}")
    found = shapes(network)
    modules = _modules(found, source)
    check_network(lambda: NCSNpp(_settings(found, modules)), found, f"{source}: model", "NCSN++")
    trainable = [name for name in network if not (name == "all_modules.0.W" and network[name].ndim == 1)]
    average = average_by_order(checkpoint, {name: network[name] for name in trainable}, source)
    return entry(checkpoint, "step", int, source), own_storage(network), average


def _modules(found: Shapes, source: str) -> list[str]:
    """The kind of each numbered module, in their order."""
    names: dict[int, list[str]] = {}
    for name in found:
        match = re.fullmatch(r"all_modules\.(\d+)\.(.+)", name)
        if match is None:
            raise UsageError(f"{source}: unexpected model entry '{name}'; NCSN++ has all_modules.<index>.<name> only")
        names.setdefault(int(match[1]), []).append(match[2])
    if not names:
        raise UsageError(f"{source}: model has no entries; the file is incomplete")
    missing = next((index for index in range(max(names) + 1) if index not in names), None)
    if missing is not None:
        raise UsageError(f"{source}: model has no entry all_modules.{missing}.*; the file is incomplete")
    return [
        next((kind for kind, signs in _SIGNS.items() if any(name.startswith(signs) for name in names[index])), "layer")
        for index in range(len(names))
    ]


def _settings(found: Shapes, modules: list[str]) -> NCSNppSettings:
    """The settings of a network with these shapes, as far as shapes depend on them.

    Raises:
        KeyError, IndexError: the shapes do not tell.
    """

    def place(index: int, name: str) -> tuple[int, ...]:
        return found[f"all_modules.{index}.{name}"]

    def resamples(index: int) -> bool:
        # A block that resamples has a projection although it keeps its channels.
        return f"all_modules.{index}.Conv_2.weight" in found and len(set(place(index, "Conv_2.weight")[:2])) == 1

    first = modules.index("block")
    n_channels, in_channels = place(first - 1, "weight")[:2]
    blocks = [index for index, kind in enumerate(modules) if kind == "block"]
    n_levels = sum(map(resamples, blocks)) // 2 + 1
    n_resblocks = (len(blocks) - 2 - 2 * (n_levels - 1) - n_levels) // (2 * n_levels)
    pyramid = "pyramid" in modules
    size = 2 ** (n_levels - 1)
    multipliers, attended, index = [], [], first
    for level in range(n_levels):
        multipliers.append(place(index, "Conv_0.weight")[0] // n_channels)
        with_attention = modules[index + 1] == "attention"
        attended += [size >> level] * with_attention
        index += n_resblocks * (1 + with_attention) + 1 + pyramid
    return NCSNppSettings(
        in_channels=in_channels,
        out_channels=place(len(modules) - 1, "weight")[0],
        image_size=size,
        n_channels=n_channels,
        ch_mult=tuple(multipliers),
        n_resblocks=n_resblocks,
        attn_resolutions=tuple(attended),
        progressive_input="residual" if pyramid else "none",
        embedding_type="fourier" if "all_modules.0.W" in found else "positional",
    )
