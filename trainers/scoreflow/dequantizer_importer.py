"""Dequantizers of the published ScoreFlow program (Song et al., arXiv 2101.09258), which are Flax training states."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from models.flowpp.dequantizer import Dequantizer
from models.flowpp.settings import DequantizerSettings
from trainers.scoreflow.flowpp_names import dequantizer_parameters
from util.errors import UsageError
from util.flax_checkpoint import flatten, read_flax_checkpoint
from util.foreign_checkpoint import check_network, check_tensor, entry, one_source, own_storage, snapshot_state
from util.named_shapes import Shapes, describe_difference, shapes
from util.option_values import options_of


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
    real = check_network(
        lambda: Dequantizer(_settings(shapes(network))), shapes(network), f"{source}: optimizer target", "Flow++"
    )
    settings = real.settings
    emas = {"dequantizer": {"decay": decay, "n_updates": int(step), "shadow": own_storage(average)}}
    state = snapshot_state("scoreflow", path, int(step), {"dequantizer": own_storage(network)}, emas)
    described = {option.flag: getattr(settings, option.field) for option in options_of(DequantizerSettings)}
    channels, size, _ = settings.image_shape
    return {**state, "config": {**state["config"], "image_channels": channels, "image_size": size, **described}}


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


def _settings(found: Shapes) -> DequantizerSettings:
    """The settings of a network with these shapes, as far as shapes depend on them; heads are the default's, as in
    every published architecture.

    Raises:
        KeyError: the shapes lack a name that tells one of them.
    """

    def count(pattern: str) -> int:
        return len({match[1] for name in found if (match := re.match(pattern, name))})

    channels, size, _ = found["steps.0.norms.0.gain"]
    coupling = "steps.0.coupling"
    return DequantizerSettings(
        image_shape=(channels, size, size),
        architecture="imagenet32" if "context.input.direction" in found else "cifar10",
        n_couplings=count(r"steps\.(\d+)\."),
        n_filters=found[f"{coupling}.position_embedding"][0],
        n_blocks=count(r"steps\.0\.coupling\.blocks\.(\d+)\."),
        n_components=(found[f"{coupling}.output.bias"][0] // channels - 2) // 3,
        context_channels=found["context.input.bias"][0],
        n_context_blocks=count(r"context\.blocks\.(\d+)\."),
    )
