"""Checkpoints of NCSN++ networks, as the published CLD-SGM and INDM programs write them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from models.ncsnpp import NCSNpp
from models.ncsnpp_settings import NCSNppSettings
from util.errors import UsageError
from util.foreign_checkpoint import read_data_parallel
from util.named_shapes import Shapes

_SIGNS = {"block": ("Conv_", "Dense_0", "GroupNorm_1"), "attention": ("NIN_",), "pyramid": ("Conv2d_0",)}
"""What names within a module of more than one layer begin with."""


def read_ncsnpp(path: Path) -> tuple[int, dict[str, torch.Tensor], dict[str, Any]]:
    """Step, network and average of a checkpoint; see ``util.foreign_checkpoint.read_data_parallel``. The Fourier
    frequencies are not trained."""
    return read_data_parallel(path, lambda found: NCSNpp(_settings(found)), "NCSN++")


def _modules(found: Shapes) -> list[str]:
    """The kind of each numbered module, in their order. Raises UsageError for anything else."""
    names: dict[int, list[str]] = {}
    for name in found:
        match = re.fullmatch(r"all_modules\.(\d+)\.(.+)", name)
        if match is None:
            raise UsageError(f"unexpected model entry '{name}'; there are all_modules.<index>.<name> only")
        names.setdefault(int(match[1]), []).append(match[2])
    if not names:
        raise UsageError("no entries; the file is incomplete")
    missing = next((index for index in range(max(names) + 1) if index not in names), None)
    if missing is not None:
        raise UsageError(f"no entry all_modules.{missing}.*; the file is incomplete")
    return [
        next((kind for kind, signs in _SIGNS.items() if any(name.startswith(signs) for name in names[index])), "layer")
        for index in range(len(names))
    ]


def _settings(found: Shapes) -> NCSNppSettings:
    """The settings of a network with these shapes, as far as shapes depend on them.

    Raises:
        KeyError, IndexError, ValueError, UsageError: the shapes do not tell.
    """
    modules = _modules(found)

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
