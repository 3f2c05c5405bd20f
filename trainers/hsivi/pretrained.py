"""Weights that a run of HSIVI starts from, whatever kind of file they come in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from trainers.hsivi.importer import convert_hsivi
from trainers.unet_checkpoint import convert_unet, program_of
from util.errors import UsageError
from util.foreign_checkpoint import read_foreign, unwrapped
from util.snapshot import DamagedSnapshot, checked_snapshot, inspect_snapshot


@dataclass(frozen=True)
class Pretrained:
    """State_dicts of the networks in a file.

    Attributes:
        path: the file.
        kind: what it was taken for, in words.
        teacher: names without prefixes, as those of the networks in ``models``.
        phi, f: of a whole HSIVI model; None where the file holds a teacher alone.
        settings: the configuration of a snapshot of ours, as far as it says; else empty.
    """

    path: Path
    kind: str
    teacher: dict[str, torch.Tensor]
    phi: dict[str, torch.Tensor] | None = None
    f: dict[str, torch.Tensor] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


def read_pretrained(path: Path, averaged: bool) -> Pretrained:
    """Read a snapshot of ours (``ddpm`` or ``hsivi``), a published HSIVI checkpoint, or published teacher weights.

    They are told apart by what is in them.

    Args:
        path: the file.
        averaged: take averaged (EMA) weights of phi and f where there are any; a teacher's always are.

    Raises:
        UsageError: no such file, damaged, or none of these.
    """
    try:
        checkpoint = unwrapped(read_foreign(path), "networks", "whole_model", "ema")
        if not isinstance(checkpoint, Mapping) or not checkpoint:
            raise UsageError(f"{path}: it holds no named tensors")
        if "networks" in checkpoint and "emas" in checkpoint:
            try:
                inspect_snapshot(path)
            except DamagedSnapshot as damage:
                raise UsageError(f"{path}: {damage}; use an intact snapshot") from None
            return _of_snapshot(checked_snapshot(checkpoint, path), path, averaged, "a snapshot")
        if "whole_model" in checkpoint:
            return _of_snapshot(convert_hsivi(checkpoint, path), path, averaged, "a published HSIVI checkpoint")
        state = convert_unet(checkpoint, path)
        return _of_snapshot(state, path, averaged, f"a network of {program_of(state['networks']['noise'])}")
    except UsageError as error:
        raise UsageError(f"--pretrained_model {error}") from None


def _of_snapshot(state: Mapping[str, Any], path: Path, averaged: bool, kind: str) -> Pretrained:
    networks, emas, settings = state["networks"], state["emas"], state.get("config", {})
    if {"teacher", "phi", "f"} <= set(networks):

        def weights(name: str) -> dict[str, torch.Tensor]:
            return {**networks[name], **(emas[name]["shadow"] if averaged else {})}

        return Pretrained(path, f"{kind} of hsivi", dict(networks["teacher"]), weights("phi"), weights("f"), settings)
    if "noise" in networks:
        return Pretrained(path, kind, {**networks["noise"], **emas["noise"]["shadow"]}, settings=settings)
    raise UsageError(
        f"{path}: a snapshot of --system {settings.get('system', 'another kind')}; hsivi starts from one of ddpm or "
        "hsivi"
    )
