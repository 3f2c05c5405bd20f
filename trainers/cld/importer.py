"""Checkpoints of the published CLD-SGM program (Dockhorn et al., arXiv 2112.07068)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from util.errors import UsageError
from util.foreign_checkpoint import (
    average_by_order,
    check_tensor,
    entry,
    one_source,
    own_storage,
    read_foreign,
    snapshot_state,
    without_prefix,
)
from util.named_shapes import describe_difference, shapes

NCSNPP_MODULES: dict[str, dict[str, tuple[int | str, ...]]] = {
    "Fourier frequencies": {"W": ("n",)},
    "linear layer": {"weight": ("out", "in"), "bias": ("out",)},
    "convolution": {"weight": ("out", "in", 3, 3), "bias": ("out",)},
    "group norm": {"weight": ("in",), "bias": ("in",)},
    "pyramid convolution": {"Conv2d_0.weight": ("out", "in", 3, 3), "Conv2d_0.bias": ("out",)},
    "attention": {
        "GroupNorm_0.weight": ("in",),
        "GroupNorm_0.bias": ("in",),
        **{f"NIN_{i}.{name}": shape for i in range(4) for name, shape in (("W", ("in", "in")), ("b", ("in",)))},
    },
    "residual block": {
        "GroupNorm_0.weight": ("in",),
        "GroupNorm_0.bias": ("in",),
        "Conv_0.weight": ("out", "in", 3, 3),
        "Conv_0.bias": ("out",),
        "Dense_0.weight": ("out", "embedding"),
        "Dense_0.bias": ("out",),
        "GroupNorm_1.weight": ("out",),
        "GroupNorm_1.bias": ("out",),
        "Conv_1.weight": ("out", "out", 3, 3),
        "Conv_1.bias": ("out",),
    },
}
"""Parameters of each kind of module in the published NCSN++ checkpoints; a word stands for one size."""
NCSNPP_MODULES["residual block with projection"] = {
    **NCSNPP_MODULES["residual block"],
    "Conv_2.weight": ("out", "in", 1, 1),
    "Conv_2.bias": ("out",),
}


def import_cld(sources: Sequence[Path]) -> dict[str, Any]:
    """A snapshot of a published checkpoint.

    Its entries: ``model``, the state_dict behind data-parallel training (prefix ``module.``); ``ema`` with
    ``decay``, ``num_updates`` and ``shadow_params``, a list without names of the averages of all parameters
    but the Fourier frequencies, in the order of ``model``; ``step``; ``optimizer``, which is left behind.

    Args:
        sources: the one file.

    Raises:
        UsageError: for anything missing, left over, of another shape, or not finite.
    """
    path = one_source(sources)
    step, network, average = read_ncsnpp(path)
    return snapshot_state("cld", path, step, {"score": network}, {"score": average})


def read_ncsnpp(path: Path) -> tuple[int, dict[str, torch.Tensor], dict[str, Any]]:
    """Step, network and average of an NCSN++ checkpoint in the layout described at ``import_cld``.

    Raises:
        UsageError: as ``import_cld``.
    """
    checkpoint, source = read_foreign(path), str(path)
    network = without_prefix(entry(checkpoint, "model", Mapping, source), source)
    for name, tensor in network.items():
        check_tensor(tensor, f"{source}: model {name}")
    _check_ncsnpp(shapes(network), source)
    trainable = [name for name in network if not _is_fourier(name, network[name])]
    average = average_by_order(checkpoint, {name: network[name] for name in trainable}, source)
    return entry(checkpoint, "step", int, source), own_storage(network), average


def _is_fourier(name: str, tensor: torch.Tensor) -> bool:
    return name == "all_modules.0.W" and tensor.ndim == 1


def _check_ncsnpp(network: Mapping[str, tuple[int, ...]], source: str) -> None:
    """The names and shapes make up complete modules, numbered from 0 without a gap."""
    modules: dict[int, dict[str, tuple[int, ...]]] = {}
    for name, shape in network.items():
        match = re.fullmatch(r"all_modules\.(\d+)\.(.+)", name)
        if match is None:
            raise UsageError(f"{source}: unexpected model entry '{name}'; NCSN++ has all_modules.<index>.<name> only")
        modules.setdefault(int(match[1]), {})[match[2]] = shape
    if not modules:
        raise UsageError(f"{source}: model has no entries; the file is incomplete")
    for index in range(max(modules) + 1):
        if index not in modules:
            raise UsageError(f"{source}: model has no entry all_modules.{index}.*; the file is incomplete")
        problem = _compare_with_kinds(modules[index])
        if problem:
            raise UsageError(f"{source}: model all_modules.{index}: {problem}")


def _compare_with_kinds(found: dict[str, tuple[int, ...]]) -> str:
    """How the parameters of a module differ from the kind of module that is nearest, or nothing."""
    problems = []
    for kind, expected in NCSNPP_MODULES.items():
        sizes = _sizes(expected, found)
        shapes_of_kind = {
            name: tuple(size if isinstance(size, int) else sizes.get(size, 0) for size in shape)
            for name, shape in expected.items()
        }
        difference = describe_difference(shapes_of_kind, found)
        if not difference and kind == "residual block" and sizes["in"] != sizes["out"]:
            difference = "missing Conv_2.weight, Conv_2.bias"
        if not difference:
            return ""
        n_differences = len(set(expected) ^ set(found)) + sum(
            found[name] != shape for name, shape in shapes_of_kind.items() if name in found
        )
        problems.append((n_differences, f"{difference} (taken for a {kind})"))
    return min(problems)[1]


def _sizes(expected: Mapping[str, tuple[int | str, ...]], found: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The size that each symbol stands for most often."""
    votes: dict[str, list[int]] = {}
    for name, shape in expected.items():
        for symbol, size in zip(shape, found.get(name, ()), strict=False):
            if isinstance(symbol, str):
                votes.setdefault(symbol, []).append(size)
    return {symbol: max(set(sizes), key=sizes.count) for symbol, sizes in votes.items()}
