"""Checkpoints of ddpm-torch and of improved-diffusion (Nichol and Dhariwal, arXiv 2102.09672): noise predictions."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping, Sequence
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
    unwrapped,
    without_prefixes,
)
from util.named_shapes import Shapes, shapes


def import_ddpm_torch(sources: Sequence[Path]) -> dict[str, Any]:
    """A snapshot of a checkpoint of ddpm-torch, or of a network of that form as HSIVI's authors published.

    Either a flat state_dict, or entries ``model`` and ``ema`` (``shadow``, by name, with ``decay`` and
    ``num_updates``) among others that are left behind. Names may have the prefixes of data-parallel training and of
    ``torch.compile``, and all may stand behind one of ``util.foreign_checkpoint.WRAPPINGS``. A flat file gives weights
    and averages, since published ones hold averages.
    """
    path = one_source(sources)
    return convert_unet(read_foreign(path), path, "ddpm-torch")


def import_improved_diffusion(sources: Sequence[Path]) -> dict[str, Any]:
    """A snapshot of a checkpoint of improved-diffusion, unconditional. As ``import_ddpm_torch``."""
    path = one_source(sources)
    return convert_unet(read_foreign(path), path, "improved-diffusion")


def convert_unet(checkpoint: Any, path: Path, program: str = "") -> dict[str, Any]:
    """As ``import_ddpm_torch``, of a checkpoint that is loaded already; without ``program`` it may be of either."""
    source, checkpoint = str(path), unwrapped(checkpoint, "ema", "whole_model")
    if not isinstance(checkpoint, Mapping):
        raise UsageError(f"{source}: a {type(checkpoint).__name__}, not a state_dict of {program or 'a U-Net'}")
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
        network = _tensors(unwrapped(checkpoint["model"]), f"{source}: model")
    else:
        network = shadow if shadow is not None else _tensors(checkpoint, source)
    if shadow is None:
        shadow = network
    for where, tensors in (("model", network), ("ema shadow", shadow)):
        check_unet(tensors, f"{source}: {where}", program)
        for name, tensor in tensors.items():
            check_tensor(tensor, f"{source}: {where} {name}")
    ema = {"decay": decay, "n_updates": n_updates, "shadow": own_storage(shadow)}
    return snapshot_state("ddpm", path, n_updates, {"noise": own_storage(network)}, {"noise": ema})


def check_unet(tensors: Mapping[str, torch.Tensor], where: str, program: str = "") -> None:
    """Raise UsageError unless it is a whole network of ``program``, or of the one that its names are of."""
    by_names = program_of(tensors)
    if program and by_names and by_names != program:
        command = by_names.replace("-", "_")
        raise UsageError(f"{where}: a network of {by_names}, not of {program}; import it with {command}")
    program, found = by_names or program or next(iter(PROGRAMS)), shapes(tensors)
    check_network(lambda: PROGRAMS[program][1](found), found, where, program)


def program_of(names: Container[str]) -> str:
    """The program that names of a state_dict are of; empty where they are of none."""
    return next((program for program, (sign, _) in PROGRAMS.items() if sign in names), "")


def _tensors(mapping: Any, where: str) -> dict[str, torch.Tensor]:
    """A state_dict, without prefixes of its names."""
    if not isinstance(mapping, Mapping):
        raise UsageError(f"{where}: a {type(mapping).__name__}, not a state_dict")
    for name, tensor in mapping.items():
        if not isinstance(tensor, torch.Tensor):
            raise UsageError(f"{where}: entry '{name}' is a {type(tensor).__name__}, not a tensor")
    return without_prefixes(mapping, where)


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


PROGRAMS: dict[str, tuple[str, Callable[[Shapes], nn.Module]]] = {
    "ddpm-torch": ("in_conv.weight", lambda found: DDPMUNet(ddpm_unet_settings(found))),
    "improved-diffusion": ("input_blocks.0.0.weight", lambda found: ImprovedUNet(improved_unet_settings(found))),
}
"""By program, a name that only its networks have, and what builds the network that shapes describe."""
