"""Checkpoints of the published HSIVI program (arXiv 2310.17153)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from trainers.unet_checkpoint import check_unet
from util.errors import UsageError
from util.foreign_checkpoint import (
    average_by_order,
    check_tensor,
    entry,
    one_source,
    own_storage,
    read_foreign,
    snapshot_state,
    unwrapped,
    without_prefixes,
)
from util.named_shapes import describe_difference, shapes

NETWORKS = {"teacher": "target_model", "phi": "phinet", "f": "fnet"}
"""Our names of the three networks, and theirs."""

LOG_GAMMA = "log_scaled_gamma"


def import_hsivi(sources: Sequence[Path]) -> dict[str, Any]:
    """A snapshot of a published checkpoint.

    Its entries: ``whole_model``, the three networks behind data-parallel training (``module.target_model.``,
    ``module.phinet.`` and ``module.fnet.``); ``ema_phinet`` and ``ema_fnet`` with ``decay``, ``num_updates`` and
    ``shadow_params``, a list without names of the averages of all parameters in their order; ``step``, the next
    iteration; two optimisers, which are left behind.
    """
    path = one_source(sources)
    return convert_hsivi(read_foreign(path), path)


def convert_hsivi(checkpoint: Any, path: Path) -> dict[str, Any]:
    """As ``import_hsivi``, of a checkpoint that is loaded already."""
    source, checkpoint = str(path), unwrapped(checkpoint, "whole_model")
    whole_model = without_prefixes(entry(checkpoint, "whole_model", Mapping, source), f"{source}: whole_model")
    networks: dict[str, dict[str, torch.Tensor]] = {name: {} for name in NETWORKS}
    for full_name, tensor in whole_model.items():
        check_tensor(tensor, f"{source}: whole_model {full_name}")
        prefix, _, name = full_name.partition(".")
        ours = next((ours for ours, theirs in NETWORKS.items() if theirs == prefix), None)
        if ours is None:
            raise UsageError(
                f"{source}: unexpected whole_model entry '{full_name}'; there are {', '.join(NETWORKS.values())} only"
            )
        networks[ours][name] = tensor
    if LOG_GAMMA not in networks["phi"]:
        raise UsageError(f"{source}: whole_model has no phinet.{LOG_GAMMA}; the file is incomplete")
    check_unet(networks["teacher"], f"{source}: whole_model target_model")
    expected = shapes(networks["teacher"])
    for ours, theirs in (("phi", "phinet"), ("f", "fnet")):
        found = {name: shape for name, shape in shapes(networks[ours]).items() if name != LOG_GAMMA}
        difference = describe_difference(expected, found)
        if difference:
            raise UsageError(f"{source}: whole_model {theirs} is not a network like target_model: {difference}")
    emas = {
        name: average_by_order(checkpoint, networks[name], source, f"ema_{NETWORKS[name]}", "whole_model")
        for name in ("phi", "f")
    }
    next_step = entry(checkpoint, "step", int, source)
    return snapshot_state(
        "hsivi", path, max(next_step - 1, 0), {name: own_storage(tensors) for name, tensors in networks.items()}, emas
    )
