"""Checkpoints of ddpm-torch and of improved-diffusion (Nichol and Dhariwal, arXiv 2102.09672): noise predictions."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from util.errors import UsageError
from util.foreign_checkpoint import check_tensor, entry, one_source, own_storage, read_foreign, snapshot_state
from util.named_shapes import describe_difference, shapes

Shapes = dict[str, tuple[int, ...]]


def import_ddpm_torch(sources: Sequence[Path]) -> dict[str, Any]:
    """A snapshot of a checkpoint of ddpm-torch, or of a network of that form as HSIVI's authors published.

    Either a flat state_dict, or entries ``model`` and ``ema`` (``shadow``, by name, with ``decay`` and
    ``num_updates``) among others that are left behind. Names may have the prefix ``module.`` of data-parallel
    training. A flat file gives weights and averages, since published ones hold averages.

    Args:
        sources: the one file.

    Raises:
        UsageError: for anything missing, left over, of another shape, or not finite.
    """
    return _import_unet(sources, "ddpm-torch", ddpm_unet_shapes)


def import_improved_diffusion(sources: Sequence[Path]) -> dict[str, Any]:
    """A snapshot of a checkpoint of improved-diffusion, unconditional. As ``import_ddpm_torch``."""
    return _import_unet(sources, "improved-diffusion", improved_unet_shapes)


def _import_unet(sources: Sequence[Path], program: str, expected_shapes: Callable[[Shapes], Shapes]) -> dict[str, Any]:
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
        try:
            difference = describe_difference(expected_shapes(found), found)
        except KeyError as missing:
            raise UsageError(
                f"{source}: {where} has no {missing.args[0]}; it is incomplete, or not a network of {program}"
            ) from None
        if difference:
            raise UsageError(f"{source}: {where} is not a whole network of {program}: {difference}")
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


def _convolution(name: str, in_channels: int, out_channels: int, *kernel: int) -> Shapes:
    return {f"{name}.weight": (out_channels, in_channels, *kernel), f"{name}.bias": (out_channels,)}


def _norm(name: str, channels: int) -> Shapes:
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def ddpm_unet_shapes(found: Shapes) -> Shapes:
    """What a whole U-Net of ddpm-torch holds if it has the width, levels, blocks and attention of ``found``.

    Raises:
        KeyError: ``found`` lacks a name that tells one of these.
    """
    n, image_channels = found["in_conv.weight"][:2]
    matches = [re.match(r"downsamples\.level_(\d+)\.(\d+)\.", name) for name in found]
    places = [(int(match[1]), int(match[2])) for match in matches if match]
    if not places:
        raise KeyError("downsamples.level_0.*")
    n_levels = max(level for level, _ in places) + 1
    n_resblocks = max(block for level, block in places if level == n_levels - 1) + 1
    attended = [f"downsamples.level_{level}.0.1.norm.weight" in found for level in range(n_levels)]
    widths = [
        found[f"downsamples.level_{level}.0.{'0.' if attended[level] else ''}conv1.weight"][0]
        for level in range(n_levels)
    ]
    embedding = 4 * n

    def residual(name: str, in_channels: int, out_channels: int) -> Shapes:
        skip = _convolution(f"{name}.skip", in_channels, out_channels, 1, 1) if in_channels != out_channels else {}
        return {
            **_norm(f"{name}.norm1", in_channels),
            **_convolution(f"{name}.conv1", in_channels, out_channels, 3, 3),
            **_convolution(f"{name}.fc", embedding, out_channels),
            **_norm(f"{name}.norm2", out_channels),
            **_convolution(f"{name}.conv2", out_channels, out_channels, 3, 3),
            **skip,
        }

    def attention(name: str, channels: int) -> Shapes:
        return {
            **_norm(f"{name}.norm", channels),
            **_convolution(f"{name}.project_in", channels, 3 * channels, 1, 1),
            **_convolution(f"{name}.project_out", channels, channels, 1, 1),
        }

    def block(name: str, in_channels: int, level: int) -> Shapes:
        if not attended[level]:
            return residual(name, in_channels, widths[level])
        return {**residual(f"{name}.0", in_channels, widths[level]), **attention(f"{name}.1", widths[level])}

    expected = {
        **_convolution("embed.0", n, embedding),
        **_convolution("embed.2", embedding, embedding),
        **_convolution("in_conv", image_channels, n, 3, 3),
    }
    skips, channels = [n], n
    for level, width in enumerate(widths):
        for index in range(n_resblocks):
            expected |= block(f"downsamples.level_{level}.{index}", channels, level)
            channels = width
            skips.append(width)
        if level + 1 < n_levels:
            expected |= _convolution(f"downsamples.level_{level}.{n_resblocks}.1", width, width, 3, 3)
            skips.append(width)
    expected |= residual("middle.0", channels, channels)
    expected |= attention("middle.1", channels)
    expected |= residual("middle.2", channels, channels)
    for level in reversed(range(n_levels)):
        for index in range(n_resblocks + 1):
            expected |= block(f"upsamples.level_{level}.{index}", channels + skips.pop(), level)
            channels = widths[level]
        if level > 0:
            expected |= _convolution(f"upsamples.level_{level}.{n_resblocks + 1}.1", channels, channels, 3, 3)
    return {**expected, **_norm("out_conv.0", n), **_convolution("out_conv.2", n, image_channels, 3, 3)}


def improved_unet_shapes(found: Shapes) -> Shapes:
    """What a whole U-Net of improved-diffusion holds if it has the width, levels, blocks, attention and number of
    outputs of ``found``.

    Raises:
        KeyError: ``found`` lacks a name that tells one of these.
    """
    n, image_channels = found["input_blocks.0.0.weight"][:2]
    n_stages = 1 + max(int(match[1]) for name in found if (match := re.match(r"input_blocks\.(\d+)\.", name)))
    downsampling = [index for index in range(n_stages) if f"input_blocks.{index}.0.op.weight" in found]
    first_stages = [1, *(index + 1 for index in downsampling)]
    n_resblocks = (downsampling[0] if downsampling else n_stages) - 1
    widths = [found[f"input_blocks.{stage}.0.in_layers.2.weight"][0] for stage in first_stages]
    attended = [f"input_blocks.{stage}.1.qkv.weight" in found for stage in first_stages]
    embedding = 4 * n
    n_numbers = found["middle_block.0.emb_layers.1.weight"][0] // widths[-1]
    n_outputs = found["out.2.weight"][0]

    def residual(name: str, in_channels: int, out_channels: int) -> Shapes:
        skip = (
            _convolution(f"{name}.skip_connection", in_channels, out_channels, 1, 1)
            if in_channels != out_channels
            else {}
        )
        return {
            **_norm(f"{name}.in_layers.0", in_channels),
            **_convolution(f"{name}.in_layers.2", in_channels, out_channels, 3, 3),
            **_convolution(f"{name}.emb_layers.1", embedding, n_numbers * out_channels),
            **_norm(f"{name}.out_layers.0", out_channels),
            **_convolution(f"{name}.out_layers.3", out_channels, out_channels, 3, 3),
            **skip,
        }

    def attention(name: str, channels: int) -> Shapes:
        return {
            **_norm(f"{name}.norm", channels),
            **_convolution(f"{name}.qkv", channels, 3 * channels, 1),
            **_convolution(f"{name}.proj_out", channels, channels, 1),
        }

    def blocks(name: str, in_channels: int, level: int) -> Shapes:
        rest = attention(f"{name}.1", widths[level]) if attended[level] else {}
        return {**residual(f"{name}.0", in_channels, widths[level]), **rest}

    expected = {
        **_convolution("time_embed.0", n, embedding),
        **_convolution("time_embed.2", embedding, embedding),
        **_convolution("input_blocks.0.0", image_channels, n, 3, 3),
    }
    skips, channels, stage = [n], n, 1
    for level, width in enumerate(widths):
        for _ in range(n_resblocks):
            expected |= blocks(f"input_blocks.{stage}", channels, level)
            channels = width
            skips.append(width)
            stage += 1
        if level + 1 < len(widths):
            expected |= _convolution(f"input_blocks.{stage}.0.op", width, width, 3, 3)
            skips.append(width)
            stage += 1
    expected |= residual("middle_block.0", channels, channels)
    expected |= attention("middle_block.1", channels)
    expected |= residual("middle_block.2", channels, channels)
    stage = 0
    for level in reversed(range(len(widths))):
        for index in range(n_resblocks + 1):
            expected |= blocks(f"output_blocks.{stage}", channels + skips.pop(), level)
            channels = widths[level]
            if level > 0 and index == n_resblocks:
                place = 2 if attended[level] else 1
                expected |= _convolution(f"output_blocks.{stage}.{place}.conv", channels, channels, 3, 3)
            stage += 1
    return {**expected, **_norm("out.0", channels), **_convolution("out.2", channels, n_outputs, 3, 3)}
