"""A snapshot that a run of hsivi can start from."""

from __future__ import annotations

from pathlib import Path

from main import parse_config
from tests.system.command import ROOT
from trainers.ddpm.method import NoisePrediction
from util.distributed import Distributed
from util.snapshot import write_snapshot


def write_teacher(path: Path) -> Path:
    """The network of ``configs/smoke/ddpm.txt`` before any training; ``configs/smoke/hsivi.txt`` has one like it."""
    config = parse_config(["-cc", str(ROOT / "configs/smoke/ddpm.txt")])
    state = NoisePrediction(config, Distributed()).state.state_dict()
    write_snapshot(path, {**state, "config": config.flat(), "versions": {}})
    return path
