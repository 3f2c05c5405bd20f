"""Comparing two sets of named tensors, for strict loading."""

from __future__ import annotations

from collections.abc import Mapping

import torch

Shapes = Mapping[str, tuple[int, ...]]


def shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each named tensor."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def describe_difference(expected: Shapes, found: Shapes) -> str:
    """The first differences of two sets of named shapes in one line, empty if there are none."""
    parts = []
    for kind, names in (
        ("missing", [name for name in expected if name not in found]),
        ("unexpected", [name for name in found if name not in expected]),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            parts.append(f"{kind} {', '.join(names[:3])}{more}")
    mismatched = [name for name in expected if name in found and expected[name] != found[name]]
    if mismatched:
        name = mismatched[0]
        more = f" and {len(mismatched) - 1} more" if len(mismatched) > 1 else ""
        parts.append(f"{name} has shape {found[name]} instead of {expected[name]}{more}")
    return "; ".join(parts)
