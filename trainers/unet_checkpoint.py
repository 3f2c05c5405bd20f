"""Checkpoints of ddpm-torch and of improved-diffusion (Nichol and Dhariwal, arXiv 2102.09672): noise predictions."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.ddpm_unet import DDPMUNet
from models.improved_unet import ImprovedUNet
from models.unet_settings import DDPMUNetSettings, ImprovedUNetSettings
from util.errors import UsageError
from util.foreign_checkpoint import (
    check_network,
    check_tensor,
    entry,
    one_source,
    own_storage,
    read_foreign,
    snapshot_state,
)
from util.named_shapes import shapes

Shapes = dict[str, tuple[int, ...]]


def import_ddpm_torch(sources: Sequence[Path]) -> dict[str, Any]:
    """A snapshot of a checkpoint of ddpm-torch, or of a network of that form as HSIVI's authors published.

    Either a flat state_dict, or entries ``model`` and ``ema`` (``shadow``, by name, with ``decay`` and
    ``num_updates``) among others that are left behind. Names may have the prefix ``module.`` of data-parallel
    training. A flat file gives weights and averages, since published ones hold averages.
    """
    return _import_unet(sources, "ddpm-torch", lambda found: DDPMUNet(ddpm_unet_settings(found)))


def import_improved_diffusion(sources: Sequence[Path]) -> dict[str, Any]:
    """A snapshot of a checkpoint of improved-diffusion, unconditional. As ``import_ddpm_torch``."""
    return _import_unet(sources, "improved-diffusion", lambda found: ImprovedUNet(improved_unet_settings(found)))


def _import_unet(sources: Sequence[Path], program: str, make: Callable[[Shapes], nn.Module]) -> dict[str, Any]:
    path = one_source(sources)
    checkpoint, source = read_foreign(path), str(path)
    if not isinstance(checkpoint, Mapping):
        raise UsageError(f"{source}: a {type(checkpoint).__name__}, not a state_dict of {program}")
    if "whole_model" in checkpoint:
        raise UsageError(f"{source}: this is a checkpoint of HSIVI; import it with hsivi")
    average = checkpoint.get("ema")
    shadow: dict[str, torch.Tensor] | None = None
    decay, n_updates = 0.0, 0
    if isinstance(average, Mapping):
        shadow = _tensors(entry(average, "shadow", Mapping, f"{source}: ema"), f"{source}: ema shadow")
        decay = entry(average, "decay", float, f"{source}: ema")
        n_updates = entry(average, "num_updates", int, f"{source}: ema")
    if isinstance(checkpoint.get("model"), Mapping):
        network = _tensors(checkpoint["model"], f"{source}: model")
    else:
        network = shadow if shadow is not None else _tensors(checkpoint, source)
    if shadow is None:
        shadow = network
    for where, tensors in (("model", network), ("ema shadow", shadow)):
        found = shapes(tensors)
        other = _other_program(found, program)
        if other:
            command = other.replace("-", "_")
            raise UsageError(f"{source}: a network of {other}, not of {program}; import it with {command}")
        check_network(partial(make, found), found, f"{source}: {where}", program)
        for name, tensor in tensors.items():
            check_tensor(tensor, f"{source}: {where} {name}")
    ema = {"decay": decay, "n_updates": n_updates, "shadow": own_storage(shadow)}
    return snapshot_state("ddpm", path, n_updates, {"noise": own_storage(network)}, {"noise": ema})


def _tensors(mapping: Any, where: str) -> dict[str, torch.Tensor]:
    """A state_dict without the prefix of data-parallel training, if it has that."""
    if not isinstance(mapping, Mapping):
        raise UsageError(f"{where}: a {type(mapping).__name__}, not a state_dict")
    for name, tensor in mapping.items():
        if not isinstance(tensor, torch.Tensor):
            raise UsageError(f"{where}: entry '{name}' is a {type(tensor).__name__}, not a tensor")
    prefixed = bool(mapping) and all(str(name).startswith("module.") for name in mapping)
    return {str(name).removeprefix("module.") if prefixed else str(name): mapping[name] for name in mapping}


def _other_program(found: Shapes, program: str) -> str:
    """The other program where the names are its, else nothing."""
    signs = {"ddpm-torch": "in_conv.weight", "improved-diffusion": "input_blocks.0.0.weight"}
    return next((name for name, sign in signs.items() if name != program and sign in found), "")


def ddpm_unet_settings(found: Shapes) -> DDPMUNetSettings:
    """The settings of a network of ddpm-torch with these shapes, as far as shapes depend on them.

    Raises:
        KeyError: the shapes lack a name that tells one of them.
    """
    n, image_channels = found["in_conv.weight"][:2]
    places = [
        (int(match[1]), int(match[2]))
        for name in found
        if (match := re.match(r"downsamples\.level_(\d+)\.(\d+)\.", name))
    ]
    if not places:
        raise KeyError("downsamples.level_0.*")
    n_levels = max(level for level, _ in places) + 1
    attended = [f"downsamples.level_{level}.0.1.norm.weight" in found for level in range(n_levels)]
    first = [f"downsamples.level_{level}.0.{'0.' * attended[level]}conv1.weight" for level in range(n_levels)]
    return DDPMUNetSettings(
        **_common(n, image_channels, attended, [found[name][0] for name in first]),
        n_resblocks=max(block for level, block in places if level == n_levels - 1) + 1,
    )


def improved_unet_settings(found: Shapes) -> ImprovedUNetSettings:
    """As ``ddpm_unet_settings``, of a network of improved-diffusion."""
    n, image_channels = found["input_blocks.0.0.weight"][:2]
    n_stages = 1 + max(int(match[1]) for name in found if (match := re.match(r"input_blocks\.(\d+)\.", name)))
    downsampling = [index for index in range(n_stages) if f"input_blocks.{index}.0.op.weight" in found]
    first = [1, *(index + 1 for index in downsampling)]
    widths = [found[f"input_blocks.{stage}.0.in_layers.2.weight"][0] for stage in first]
    attended = [f"input_blocks.{stage}.1.qkv.weight" in found for stage in first]
    return ImprovedUNetSettings(
        **_common(n, image_channels, attended, widths),
        n_resblocks=(downsampling[0] if downsampling else n_stages) - 1,
        num_heads=1,
        learn_sigma=found["out.2.weight"][0] == 2 * image_channels,
        use_scale_shift_norm=found["middle_block.0.emb_layers.1.weight"][0] == 2 * widths[-1],
    )


def _common(n: int, image_channels: int, attended: list[bool], widths: list[int]) -> dict[str, Any]:
    """What both kinds of networks have, on the smallest image that has as many levels."""
    size = 2 ** (len(widths) - 1)
    return {
        "image_channels": image_channels,
        "image_size": size,
        "n_channels": n,
        "ch_mult": tuple(width // n for width in widths),
        "attn_resolutions": tuple(size >> level for level, has in enumerate(attended) if has),
        "n_groups": 1,
    }
