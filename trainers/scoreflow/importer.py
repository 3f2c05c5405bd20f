"""Checkpoints of the published ScoreFlow program (Song et al., arXiv 2101.09258), which are Flax training states."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from util.errors import UsageError
from util.flax_checkpoint import flatten, read_flax_checkpoint
from util.foreign_checkpoint import check_tensor, count, entry, one_source, own_storage, snapshot_state
from util.named_shapes import describe_difference, shapes
from util.optimization import make_optimizer

_LEARNING_RATE = 2e-4  # of the published recipe; the file holds that of its last step

_BLOCK, _ATTENTION = "ResnetBlockBigGANpp", "AttnBlockpp"
_LAYERS = {
    _BLOCK: ("GroupNorm_0", "Conv_0", "Dense_0", "GroupNorm_1", "Conv_1", "Conv_2"),
    _ATTENTION: ("GroupNorm_0", "NIN_0", "NIN_1", "NIN_2", "NIN_3"),
}
"""Layers of the modules that have any, in the order of our parameters."""
_PARAMETERS = ("kernel", "scale", "W", "bias", "b")
"""Parameters of a layer, likewise."""


def from_flax(path: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
    """Name within its module, and layout, of one parameter in ours.

    Kernels of convolutions are (height, width, in, out) there and (out, in, height, width) here, those of dense layers
    (in, out) and (out, in). Maps of the channels (NIN) are the same in both.

    Args:
        path: the parameter's path, for example "Conv_0/kernel", or "AttnBlockpp_0/NIN_0/W".
        tensor: its values.
    """
    *module, name = path.split("/")
    if name == "kernel":
        tensor = tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor.t()
    name = {"kernel": "weight", "scale": "weight"}.get(name, name)
    return ".".join([*module[1:], name]), tensor


def module_order(n_blocks: int, has_attention: Sequence[bool]) -> list[str]:
    """Modules of the published DDPM++ in the order of ours, which numbers them from 0.

    Args:
        n_blocks: residual blocks of each level.
        has_attention: for each level, the finest first.
    """
    n_levels = len(has_attention)
    kinds = []
    for level in range(n_levels):
        kinds += [_BLOCK, _ATTENTION] * n_blocks if has_attention[level] else [_BLOCK] * n_blocks
        kinds += [_BLOCK] * (level + 1 < n_levels)
    kinds += [_BLOCK, _ATTENTION, _BLOCK]
    for level in reversed(range(n_levels)):
        kinds += [_BLOCK] * (n_blocks + 1) + [_ATTENTION] * has_attention[level] + [_BLOCK] * (level > 0)
    numbers = {_BLOCK: 0, _ATTENTION: 0}
    order = []
    for kind in kinds:
        order.append(f"{kind}_{numbers[kind]}")
        numbers[kind] += 1
    return ["Dense_0", "Dense_1", "Conv_0", *order, "GroupNorm_0", "Conv_1"]


def our_names(parameters: Mapping[str, torch.Tensor], where: str) -> dict[str, str]:
    """For each parameter of a published network its name in ours, in the order of ours.

    The structure follows from the shapes: a block that resamples has a projection although it keeps its channels. Where
    levels are equally wide, attention is taken to be at the finest of them, as in all published networks.

    Args:
        parameters: by path.
        where: names the file in messages.

    Raises:
        UsageError: these are not the parameters of a DDPM++.
    """
    order = module_order(*_structure(parameters, where))
    names = {}
    for index, module in enumerate(order):
        for path in _paths_of(module):
            if path in parameters:
                names[path] = f"all_modules.{index}.{from_flax(path, parameters[path])[0]}"
    left = sorted(set(parameters) - set(names))
    if left:
        raise UsageError(f"{where} {left[0]}: is not part of a DDPM++; this is not a score model of ScoreFlow")
    for module in order:
        if not any(path.startswith(f"{module}/") for path in names):
            raise UsageError(f"{where}: no {module}; the file is incomplete")
    return names


def _paths_of(module: str) -> Iterable[str]:
    layers = _LAYERS.get(module.rpartition("_")[0])
    for layer in [module] if layers is None else [f"{module}/{name}" for name in layers]:
        for parameter in _PARAMETERS:
            yield f"{layer}/{parameter}"


def _structure(parameters: Mapping[str, torch.Tensor], where: str) -> tuple[int, list[bool]]:
    """Residual blocks of each level, and which levels have attention."""

    def numbers(kind: str) -> int:
        return len({match[1] for path in parameters if (match := re.match(rf"{kind}_(\d+)/", path))})

    def channels(path: str) -> tuple[int, int]:
        kernel = parameters.get(path)
        if kernel is None or kernel.ndim < 2:
            raise UsageError(f"{where}: no {path}; this is not a score model of ScoreFlow, or incomplete")
        return kernel.shape[-2], kernel.shape[-1]

    n_modules, n_attentions = numbers(_BLOCK), numbers(_ATTENTION)
    projections = [f"{_BLOCK}_{index}/Conv_2/kernel" for index in range(n_modules)]
    n_resampling = sum(len(set(channels(path))) == 1 for path in projections if path in parameters)
    n_levels = n_resampling // 2 + 1
    n_blocks = (n_modules - 2 - n_resampling - n_levels) // (2 * n_levels)
    n_with_attention = (n_attentions - 1) // (n_blocks + 1) if n_blocks > 0 else 0
    widths = [channels(f"{_BLOCK}_{level * (n_blocks + 1)}/Conv_0/kernel")[1] for level in range(n_levels)]
    has_attention = [False] * n_levels
    for group in range(n_with_attention):
        width, _ = channels(f"{_ATTENTION}_{group * n_blocks}/NIN_0/W")
        free = [level for level in range(n_levels) if widths[level] == width and not any(has_attention[level:])]
        if free:
            has_attention[free[0]] = True
    expected = (2 * n_levels * n_blocks + n_levels + 2 + 2 * (n_levels - 1), sum(has_attention) * (n_blocks + 1) + 1)
    if n_blocks < 1 or expected != (n_modules, n_attentions):
        raise UsageError(
            f"{where}: {n_modules} residual blocks and {n_attentions} attention blocks do not make up a DDPM++; the "
            "file is incomplete or of another network"
        )
    return n_blocks, has_attention


def import_scoreflow(sources: Sequence[Path]) -> dict[str, Any]:
    """A snapshot of a published score model, ``checkpoint_<k>``.

    Its entries: ``step``; ``optimizer`` with ``target``, the parameters, and Adam's ``state``, which is taken over, so
    that training can go on; ``params_ema`` and ``ema_rate``.
    """
    path = one_source(sources)
    checkpoint, source = read_flax_checkpoint(path), str(path)
    step = count(checkpoint, "step", source)
    optimizer = entry(checkpoint, "optimizer", Mapping, source)
    parameters = _checked(entry(optimizer, "target", Mapping, f"{source}: optimizer"), f"{source}: optimizer/target")
    names = our_names(parameters, f"{source}: optimizer/target")
    averages = _checked(entry(checkpoint, "params_ema", Mapping, source), f"{source}: params_ema")
    network = _renamed(parameters, names)
    average = _like(network, averages, names, f"{source}: params_ema")
    decay = checkpoint.get("ema_rate")
    if not isinstance(decay, torch.Tensor) or decay.ndim or not 0 <= decay <= 1:
        raise UsageError(f"{source}: no entry 'ema_rate' between 0 and 1; this is not a checkpoint of ScoreFlow")
    # The file has it in float32.
    emas = {"score": {"decay": round(float(decay), 7), "n_updates": step, "shadow": average}}
    state = _optimizer_state(network, names, entry(optimizer, "state", Mapping, source), f"{source}: optimizer/state")
    return snapshot_state("scoreflow", path, step, {"score": network}, emas, {"score": state})


def _checked(collection: Mapping[str, Any], where: str) -> dict[str, torch.Tensor]:
    parameters = flatten(collection)
    for path, tensor in parameters.items():
        check_tensor(tensor, f"{where} {path}")
        if path.endswith("/kernel") and tensor.ndim not in (2, 4):
            raise UsageError(f"{where} {path}: has {tensor.ndim} axes; kernels have 2 or 4")
    return parameters


def _renamed(parameters: Mapping[str, torch.Tensor], names: Mapping[str, str]) -> dict[str, torch.Tensor]:
    return own_storage({name: from_flax(path, parameters[path])[1] for path, name in names.items()})


def _like(
    network: Mapping[str, torch.Tensor], parameters: Mapping[str, torch.Tensor], names: Mapping[str, str], where: str
) -> dict[str, torch.Tensor]:
    """Another collection of the same names and shapes."""
    if set(parameters) != set(names):
        path = sorted(set(parameters) ^ set(names))[0]
        raise UsageError(f"{where} {path}: only there, or only in optimizer/target; the file is incomplete")
    renamed = _renamed(parameters, names)
    difference = describe_difference(shapes(network), shapes(renamed))
    if difference:
        raise UsageError(f"{where}: {difference}")
    return renamed


def _optimizer_state(
    network: Mapping[str, torch.Tensor], names: Mapping[str, str], state: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """The state_dict of our optimiser with the file's moments."""
    n_updates = count(state, "step", where)
    states = flatten(entry(state, "param_states", Mapping, where))
    moments = {}
    for key, suffix in (("exp_avg", "/grad_ema"), ("exp_avg_sq", "/grad_sq_ema")):
        found = {path.removesuffix(suffix): tensor for path, tensor in states.items() if path.endswith(suffix)}
        for path, tensor in found.items():
            check_tensor(tensor, f"{where} {path}{suffix}")
        moments[key] = _like(network, found, names, where)
    parameters = {name: nn.Parameter(tensor) for name, tensor in network.items()}
    optimizer = make_optimizer("Adam", parameters.values(), _LEARNING_RATE)
    for name, parameter in parameters.items():
        optimizer.state[parameter] = {
            "step": torch.tensor(float(n_updates)),
            **{key: tensors[name] for key, tensors in moments.items()},
        }
    return optimizer.state_dict()
