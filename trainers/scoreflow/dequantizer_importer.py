"""Dequantizers of the published ScoreFlow program (Song et al., arXiv 2101.09258), which are Flax training states."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from trainers.scoreflow.flowpp_names import dequantizer_parameters
from util.errors import UsageError
from util.flax_checkpoint import flatten, read_flax_checkpoint
from util.foreign_checkpoint import check_tensor, entry, one_source, own_storage, snapshot_state
from util.named_shapes import describe_difference, shapes

# Of every published architecture; shapes do not tell it.
_N_HEADS = 4


def import_scoreflow_dequantizer(sources: Sequence[Path]) -> dict[str, Any]:
    """A snapshot of a published dequantizer, ``flowpp_dequantizer/checkpoints/checkpoint_<k>``.

    Its entries: ``step``; ``optimizer``, with the weights as ``target`` and moments that are left behind;
    ``params_ema``, the averaged weights, which evaluations use; ``ema_rate``. Weights are under one more name,
    ``params``.
    """
    path = one_source(sources)
    checkpoint, source = read_flax_checkpoint(path), str(path)
    optimizer = entry(checkpoint, "optimizer", Mapping, source)
    network = _weights(entry(optimizer, "target", Mapping, f"{source}: optimizer"), f"{source}: optimizer target")
    average = _weights(entry(checkpoint, "params_ema", Mapping, source), f"{source}: params_ema")
    difference = describe_difference(shapes(network), shapes(average))
    if difference:
        raise UsageError(f"{source}: params_ema does not fit optimizer target: {difference}")
    step, decay = _number(checkpoint, "step", source), _number(checkpoint, "ema_rate", source)
    emas = {"dequantizer": {"decay": decay, "n_updates": int(step), "shadow": own_storage(average)}}
    state = snapshot_state("scoreflow", path, int(step), {"dequantizer": own_storage(network)}, emas)
    return {**state, "config": {**state["config"], **_settings(network, source)}}


def _weights(collection: Mapping[str, Any], where: str) -> dict[str, torch.Tensor]:
    weights = flatten(entry(collection, "params", Mapping, where))
    for name, tensor in weights.items():
        check_tensor(tensor, f"{where} {name}")
    return dequantizer_parameters(weights, where)


def _number(mapping: Mapping[str, Any], key: str, where: str) -> float:
    """A number that the file holds as such or as an array without axes."""
    value = mapping.get(key)
    if isinstance(value, torch.Tensor) and value.ndim == 0:
        return value.item()
    return entry(mapping, key, float, where)


def _settings(network: Mapping[str, torch.Tensor], source: str) -> dict[str, Any]:
    """The options that describe the network, as its shapes tell them."""

    def size(name: str, axis: int) -> int:
        if name not in network:
            raise UsageError(f"{source}: no '{name}'; the file is incomplete or of another network")
        return network[name].shape[axis]

    def count(pattern: str) -> int:
        return len({match[1] for name in network if (match := re.match(pattern, name))})

    first = "steps.0.coupling"
    channels = size("steps.0.norms.0.gain", 0)
    return {
        "image_size": size("steps.0.norms.0.gain", 1),
        "image_channels": channels,
        "dequantizer_architecture": "imagenet32" if "context.input.direction" in network else "cifar10",
        "dequantizer_n_couplings": count(r"steps\.(\d+)\."),
        "dequantizer_n_filters": size(f"{first}.position_embedding", 0),
        "dequantizer_n_blocks": count(r"steps\.0\.coupling\.blocks\.(\d+)\."),
        "dequantizer_n_components": (size(f"{first}.output.bias", 0) // channels - 2) // 3,
        "dequantizer_n_heads": _N_HEADS,
        "dequantizer_context_channels": size("context.input.bias", 0),
        "dequantizer_n_context_blocks": count(r"context\.blocks\.(\d+)\."),
        "dequantizer_n_context_heads": _N_HEADS,
    }
