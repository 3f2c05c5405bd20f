"""What has to hold on a GPU."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.models import SMALL, Model
from benchmarks.gpu.report import FAILED, Table
from util.snapshot import read_snapshot, write_snapshot

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-3
"""Relative, of a step's loss and gradient norm in float32: the device adds up in another order than the CPU."""
RANKS_TOLERANCE = 1e-3
N_SAMPLES = 4


def steps_against_the_cpu(device: torch.device) -> Table:
    """Loss and gradient norm of two steps of every system, and a third step in which waiting is an error."""
    table = Table(
        "A step of every system, against the CPU",
        f"Loss and gradient norm of two steps in float32; relative difference at most {TOLERANCE:g}. Then a step "
        "within `torch.cuda.set_sync_debug_mode('error')`.",
    )
    for name, config in SMALL.items():
        row: dict[str, Any] = {"system": name}
        table.rows.append(row)
        try:
            reported = []
            on_device = Model(config, device, N_SAMPLES)
            for model in (Model(config, torch.device("cpu"), N_SAMPLES), on_device):
                steps = [model.prepare()() for _ in range(2)]
                reported.append([{key: float(value) for key, value in step.items()} for step in steps])
            row["difference"] = max(
                _relative(theirs[key], value)
                for ours, theirs in zip(*reported, strict=True)
                for key, value in ours.items()
            )
            if not row["difference"] <= TOLERANCE:
                table.failures.append(f"{name}: differs by {row['difference']:.1e}")
            row["waits"] = _waits(on_device)
            if row["waits"].startswith(FAILED):
                table.failures.append(f"{name}: {row['waits']}")
        except Exception as error:
            row["difference"] = f"{FAILED}: {first_line(error)}"
            table.failures.append(f"{name}: {row['difference']}")
    return table


def _relative(value: float, other: float) -> float:
    if not math.isfinite(value) or not math.isfinite(other):
        return math.inf
    return abs(value - other) / max(abs(other), 1e-6)


def _waits(model: Model) -> str:
    if model.device.type != "cuda":
        return "not asked on a CPU"
    take_step = model.prepare()
    torch.cuda.synchronize(model.device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        take_step()
    except RuntimeError as error:
        return f"{FAILED}: {first_line(error)}"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "none"


def exact_resume(device: torch.device, names: tuple[str, ...]) -> Table:
    """Two steps, a snapshot, a new process's worth of objects, two more, against four undisturbed."""
    table = Table("Exact resume", "4 steps undisturbed, against 2, a snapshot on disk, and 2 more: equal bit for bit.")
    for name in names:
        row: dict[str, Any] = {"system": name}
        table.rows.append(row)
        try:
            whole = Model(SMALL[name], device, N_SAMPLES)
            for _ in range(4):
                whole.prepare()()
            first, second = (Model(SMALL[name], device, N_SAMPLES) for _ in range(2))
            for _ in range(2):
                first.prepare()()
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "checkpoint.pth"
                write_snapshot(path, {**first.method.state.state_dict(), "config": first.config.flat()})
                second.method.state.load_state_dict(read_snapshot(path), str(path))
            for _ in range(2):
                second.prepare()()
            differing = _differences(whole.method.state.state_dict(), second.method.state.state_dict())
            row["equal"] = not differing
            if differing:
                row["differs in"] = ", ".join(differing[:3])
                table.failures.append(f"{name}: {len(differing)} tensors differ, {differing[0]} first")
        except Exception as error:
            row["equal"] = f"{FAILED}: {first_line(error)}"
            table.failures.append(f"{name}: {row['equal']}")
    return table


def _differences(one: Any, other: Any, where: str = "") -> list[str]:
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [where]
    if isinstance(one, dict):
        return [name for key in one for name in _differences(one[key], other[key], f"{where}/{key}")]
    if isinstance(one, (list, tuple)):
        return [name for i in range(len(one)) for name in _differences(one[i], other[i], f"{where}/{i}")]
    return [] if one == other else [where]


def two_ranks_on_one_device(device: torch.device) -> Table:
    """The command itself, with one rank and with two that share the device."""
    table = Table(
        "Two ranks on one device",
        f"`main.py` for 4 steps on one rank and on two (`--ranks_per_gpu 2`): weights within {RANKS_TOLERANCE:g}.",
    )
    row: dict[str, Any] = {}
    table.rows.append(row)
    with tempfile.TemporaryDirectory() as folder:
        weights = []
        for n_ranks in (1, 2):
            workdir = Path(folder) / str(n_ranks)
            command = [
                sys.executable, "main.py", "-cc", SMALL["cld"], "--workdir", str(workdir), "--device", device.type,
                "--n_gpus_per_node", str(n_ranks), "--ranks_per_gpu", str(n_ranks), "--n_train_iters", "4",
                "--training_batch_size", str(8 // n_ranks), "--total_batch_size", "8", "--dropout", "0",
                "--eval_freq", "0", "--sample_freq", "0",
            ]  # fmt: skip
            done = subprocess.run(
                command,
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                row["difference"] = f"{FAILED} on {n_ranks}: {(done.stdout + done.stderr).strip().splitlines()[-1:]}"
                table.failures.append(row["difference"])
                return table
            weights.append(read_snapshot(workdir / "checkpoints" / "checkpoint.pth")["networks"])
    row["difference"] = max(
        (one - weights[1][network][key]).abs().max().item()
        for network, entries in weights[0].items()
        for key, one in entries.items()
        if one.numel()
    )
    if not row["difference"] <= RANKS_TOLERANCE:
        table.failures.append(f"weights differ by {row['difference']:.1e}")
    return table


def first_line(error: Exception) -> str:
    """Of what it says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
