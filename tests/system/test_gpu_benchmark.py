"""The first run on a GPU is known to run: the same script on a CPU, with small networks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE
from tests.system.command import ROOT


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Where no GPU is seen."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "benchmarks.gpu", "--folder", str(folder), *words]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE
    )


@pytest.mark.slow
def test_every_part_of_it_runs(tmp_path: Path) -> None:
    done = run(tmp_path, "--device", "cpu", "--tiny", "--minutes", "60")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Everything that has to hold does." in done.stdout
    tables = {table["title"]: table for table in json.loads((tmp_path / "gpu.json").read_text())["tables"]}
    assert len(tables) == 6
    assert not any(table["failures"] for table in tables.values())
    assert all(row["difference"] <= 1e-3 for row in tables["A step of every system, against the CPU"]["rows"])
    assert all(row["equal"] is True for row in tables["Exact resume"]["rows"])
    assert all(row["images/s"] > 0 for row in tables["Training"]["rows"])
    assert (tmp_path / "gpu.md").read_text() in done.stdout


@pytest.mark.slow
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = run(tmp_path / "none")
    assert done.returncode == 2
    assert "torch sees no GPU" in done.stderr
    assert not (tmp_path / "none").exists()
