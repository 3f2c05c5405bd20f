"""Checkpoints of the published ScoreFlow program (Song et al., arXiv 2101.09258), which are Flax training states."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.layers import AttentionBlock, ResidualBlock
from models.ncsnpp import NCSNpp
from models.ncsnpp_settings import NCSNppSettings
from util.errors import UsageError
from util.flax_checkpoint import flatten, read_flax_checkpoint
from util.foreign_checkpoint import (
    adam_state,
    check_shapes,
    check_tensor,
    count,
    entry,
    one_source,
    own_storage,
    real_network,
    snapshot_state,
)
from util.named_shapes import Shapes, describe_difference, shapes
from util.optimization import make_optimizer

_LEARNING_RATE = 2e-4  # of the published recipe; the file holds that of its last step

_KINDS: dict[type, str] = {
    ResidualBlock: "ResnetBlockBigGANpp",
    AttentionBlock: "AttnBlockpp",
    nn.Linear: "Dense",
    nn.Conv2d: "Conv",
    nn.GroupNorm: "GroupNorm",
}
"""What the published program calls modules; it numbers each kind by itself, in the order in which they are used."""


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


def module_names(network: NCSNpp) -> list[str]:
    """The published names of a DDPM++'s numbered modules, in their order."""
    numbers: Counter[str] = Counter()
    names = []
    for module in network.all_modules:
        kind = _KINDS[type(module)]
        names.append(f"{kind}_{numbers[kind]}")
        numbers[kind] += 1
    return names


def published_paths(network: NCSNpp) -> dict[str, str]:
    """For each parameter of a DDPM++, in its order, the published path and the name in ours."""
    paths = {}
    for index, (published, module) in enumerate(zip(module_names(network), network.all_modules, strict=True)):
        for name, _ in module.named_parameters():
            layer, _, leaf = name.rpartition(".")
            kernel = "scale" if isinstance(module.get_submodule(layer), nn.GroupNorm) else "kernel"
            path = "/".join([published, *filter(None, [layer]), {"weight": kernel}.get(leaf, leaf)])
            paths[path] = f"all_modules.{index}.{name}"
    return paths


def our_names(parameters: Mapping[str, torch.Tensor], where: str) -> dict[str, str]:
    """For each parameter of a published network its name in ours, in the order of ours.

    Args:
        parameters: by path.
        where: names the file in messages.

    Raises:
        UsageError: these are not the parameters of a DDPM++, or not all of them.
    """
    found = {path: tuple(from_flax(path, tensor)[1].shape) for path, tensor in parameters.items()}
    network = real_network(lambda: NCSNpp(_settings(found)), f"{where}:", "DDPM++")
    names, ours = published_paths(network), shapes(network.state_dict())
    check_shapes({path: ours[name] for path, name in names.items()}, found, f"{where}:", "DDPM++")
    return names


def _settings(found: Shapes) -> NCSNppSettings:
    """The settings of a network whose parameters have these shapes, in our layout, as far as shapes depend on them.

    A block that resamples has a projection although it keeps its channels. Where levels are equally wide, attention is
    taken to be at the finest of them, as in all published networks.

    Args:
        found: by path.

    Raises:
        KeyError, IndexError, UsageError: the shapes do not tell.
    """
    block, attention = _KINDS[ResidualBlock], _KINDS[AttentionBlock]

    def numbers(kind: str) -> int:
        return len({match[1] for path in found if (match := re.match(rf"{kind}_(\d+)/", path))})

    n_modules, n_attentions = numbers(block), numbers(attention)
    projections = [found.get(f"{block}_{index}/Conv_2/kernel", (1, 0)) for index in range(n_modules)]
    n_resampling = sum(outputs == inputs for outputs, inputs, *_ in projections)
    n_levels = n_resampling // 2 + 1
    n_blocks = (n_modules - 2 - n_resampling - n_levels) // (2 * n_levels)
    n_with_attention = (n_attentions - 1) // (n_blocks + 1) if n_blocks > 0 else 0
    widths = [found[f"{block}_{level * (n_blocks + 1)}/Conv_0/kernel"][0] for level in range(n_levels)]
    attended: list[int] = []
    for group in range(n_with_attention):
        width = found[f"{attention}_{group * n_blocks}/NIN_0/W"][0]
        attended += [level for level in range(max(attended, default=-1) + 1, n_levels) if widths[level] == width][:1]
    expected = (2 * n_levels * n_blocks + n_levels + 2 + 2 * (n_levels - 1), len(attended) * (n_blocks + 1) + 1)
    if n_blocks < 1 or expected != (n_modules, n_attentions):
        raise UsageError(
            f"{n_modules} residual blocks and {n_attentions} attention blocks do not make up one; the file is "
            "incomplete or of another network"
        )
    n_channels, in_channels = found["Conv_0/kernel"][:2]
    size = 2 ** (n_levels - 1)
    return NCSNppSettings(
        in_channels=in_channels,
        out_channels=found["Conv_1/kernel"][0],
        image_size=size,
        n_channels=n_channels,
        ch_mult=tuple(width // n_channels for width in widths),
        n_resblocks=n_blocks,
        attn_resolutions=tuple(size >> level for level in attended),
        progressive_input="none",
        embedding_type="positional",
    )


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
    return adam_state(
        lambda parameters: make_optimizer("Adam", parameters.values(), _LEARNING_RATE), network, moments, n_updates
    )
