"""Published checkpoints of HSIVI as test files: of any network, or as the recorded layout describes one."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

PREFIXES = {"teacher": "target_model", "phi": "phinet", "f": "fnet"}


def layout_shapes() -> dict[str, tuple[int, ...]]:
    """Path in the recorded checkpoint -> shape, of every tensor whose shape is on record."""
    folder = Path(os.environ.get("GOLDEN_DIR") or Path(__file__).parents[1] / "golden" / "vectors")
    found = {}
    for line in (folder / "hsivi" / "checkpoint_layout.txt").read_text().splitlines():
        path, _, kind = line.partition("\t")
        match = re.match(r"(\d+(?:x\d+)*)(?:\t|$)", kind)
        if match and "[" in path:
            found[path] = tuple(int(size) for size in match[1].split("x"))
    return found


def layout_checkpoint() -> dict[str, Any]:
    """A checkpoint with every entry of the recorded one, numbers at random."""
    generator = torch.Generator().manual_seed(0)
    checkpoint: dict[str, Any] = {
        "optimizer_phinet": {"state": {}, "param_groups": []},
        "optimizer_fnet": {"state": {}, "param_groups": []},
        "whole_model": {},
        "ema_phinet": {"decay": 0.999, "num_updates": 1, "shadow_params": []},
        "ema_fnet": {"decay": 0.999, "num_updates": 20, "shadow_params": []},
        "step": 21,
    }
    for path, shape in layout_shapes().items():
        values = torch.randn(shape, generator=generator)
        if match := re.fullmatch(r"whole_model\['(.+)'\]", path):
            checkpoint["whole_model"][match[1]] = values
        elif match := re.fullmatch(r"(ema_\w+)\['shadow_params'\]\[(\d+)\]", path):
            averages = checkpoint[match[1]]["shadow_params"]
            assert len(averages) == int(match[2])
            averages.append(values)
    return checkpoint


def published(networks: Mapping[str, nn.Module], scale: float = 2.0) -> dict[str, Any]:
    """A checkpoint of the three networks as the public code writes it; averages are ``scale`` times the weights."""
    states = {name: network.state_dict() for name, network in networks.items()}
    whole_model = {
        f"module.{PREFIXES[name]}.{key}": value.clone()
        for name, state in states.items()
        for key, value in state.items()
    }
    emas = {
        f"ema_{PREFIXES[name]}": {
            "decay": 0.999,
            "num_updates": 3,
            "shadow_params": [scale * value for value in states[name].values()],
        }
        for name in ("phi", "f")
    }
    return {"optimizer_phinet": {}, "optimizer_fnet": {}, "whole_model": whole_model, **emas, "step": 8}
