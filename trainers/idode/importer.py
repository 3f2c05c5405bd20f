"""Checkpoints of the published i-DODE program (Zheng et al., arXiv 2305.03935), which are Flax training states."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.vdm_unet import VDMUNet
from models.vdm_unet_settings import VDMUNetSettings
from util.errors import UsageError
from util.flax_checkpoint import flatten, read_flax_checkpoint
from util.foreign_checkpoint import (
    adam_state,
    check_network,
    check_tensor,
    count,
    entry,
    one_source,
    own_storage,
    snapshot_state,
)
from util.named_shapes import describe_difference, shapes
from util.optimization import make_optimizer

_MODULE = "score_model"
# Of the published recipes; the file does not hold them.
_EMA_DECAY = 0.9999
_LEARNING_RATE = 2e-4
_WEIGHT_DECAY = 0.01
_BETAS = (0.9, 0.99)


def from_flax(path: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
    """Name and layout in ours of one parameter of the published network.

    Kernels of convolutions are (height, width, in, out) there and (out, in, height, width) here, those of dense layers
    (in, out) and (out, in); the dense shortcuts are convolutions of one pixel here.
    """
    name = re.sub(r"\.(kernel|scale)$", ".weight", path.replace("/", "."))
    if path.endswith("/kernel"):
        tensor = tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor.t()
        if path.endswith("nin_shortcut/kernel"):
            tensor = tensor[:, :, None, None]
    return name, tensor


def import_idode(sources: Sequence[Path]) -> dict[str, Any]:
    """A snapshot of a published checkpoint, ``ckpt-<n>.flax``.

    Its entries: ``step``, which counts micro-batches; ``params`` and ``ema_params``, one module ``score_model``;
    ``opt_state``, of which Adam's count and moments are taken over, so that training can go on. Gradients of a step
    that accumulation had not finished are left behind.
    """
    path = one_source(sources)
    checkpoint, source = read_flax_checkpoint(path), str(path)
    step = count(checkpoint, "step", source)
    network = _parameters(entry(checkpoint, "params", Mapping, source), f"{source}: params")
    check_vdm_unet(network, f"{source}: params")
    average = _like(network, entry(checkpoint, "ema_params", Mapping, source), f"{source}: ema_params")
    network, average = own_storage(network), own_storage(average)
    optimizer = _optimizer_state(network, entry(checkpoint, "opt_state", Mapping, source), f"{source}: opt_state")
    emas = {"score": {"decay": _EMA_DECAY, "n_updates": step, "shadow": average}}
    return snapshot_state("idode", path, step, {"score": network}, emas, {"score": optimizer})


def _parameters(collection: Mapping[str, Any], where: str) -> dict[str, torch.Tensor]:
    """One collection of the file, renamed; in its order."""
    if set(collection) != {_MODULE}:
        raise UsageError(f"{where}: holds {', '.join(sorted(collection)) or 'nothing'} instead of {_MODULE} alone")
    renamed = {}
    for path, tensor in flatten(collection[_MODULE]).items():
        check_tensor(tensor, f"{where} {path}")
        if path.endswith("/kernel") and tensor.ndim not in (2, 4):
            raise UsageError(f"{where} {path}: has {tensor.ndim} axes; kernels have 2 or 4")
        name, converted = from_flax(path, tensor)
        renamed[name] = converted
    return renamed


def check_vdm_unet(network: dict[str, torch.Tensor], where: str) -> None:
    """The parameters are those of a VDM U-Net, none missing and none left over; put them into its order."""
    for name in ("conv_in.weight", "conv_out.weight"):
        if name not in network or network[name].ndim != 4:
            raise UsageError(f"{where}: no convolution {name.split('.')[0]}; this is not a checkpoint of i-DODE")
    width, n_input_channels = network["conv_in.weight"].shape[:2]
    n_layers = sum(bool(re.fullmatch(r"down\.block_\d+\.conv1\.weight", name)) for name in network)
    image_channels = len(network["conv_out.weight"])

    def make() -> VDMUNet:
        settings = VDMUNetSettings(
            n_image_channels=image_channels,
            gamma_min=0.0,
            gamma_max=1.0,
            n_channels=width,
            n_resblocks=n_layers,
            with_attention="down.attn_0.q.weight" in network,
            with_fourier_features=n_input_channels != image_channels,
        )
        return VDMUNet(settings)

    for name in check_network(make, shapes(network), where, "i-DODE").state_dict():
        network[name] = network.pop(name)


def _like(network: dict[str, torch.Tensor], collection: Mapping[str, Any], where: str) -> dict[str, torch.Tensor]:
    """Another collection of the same names and shapes, in the network's order."""
    found = _parameters(collection, where)
    difference = describe_difference(shapes(network), shapes(found))
    if difference:
        raise UsageError(f"{where}: {difference}")
    return {name: found[name] for name in network}


def _optimizer_state(network: dict[str, torch.Tensor], opt_state: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The state_dict of our optimiser with the file's moments."""
    # With gradient accumulation the optimiser's own state is one level further down.
    inner = opt_state.get("inner_opt_state", opt_state)
    adam = entry(inner, "0", Mapping, where)
    n_updates = count(adam, "count", where)
    moments = {
        key: own_storage(_like(network, entry(adam, name, Mapping, where), f"{where} {name}"))
        for key, name in (("exp_avg", "mu"), ("exp_avg_sq", "nu"))
    }

    def make(parameters: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
        biases = [parameter for name, parameter in parameters.items() if name.endswith(".bias")]
        return make_optimizer(
            "AdamW", parameters.values(), _LEARNING_RATE, _WEIGHT_DECAY, _BETAS, without_decay=biases
        )

    return adam_state(make, network, moments, n_updates)
