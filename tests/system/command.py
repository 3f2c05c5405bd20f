"""Running main.py as a user does."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
import torch

from tests.patience import PATIENCE, wait_for

ROOT = Path(__file__).parents[2]
NO_TIME_OUTS = {"rank_timeout": 3600, "node_timeout": 3600, "grace_seconds": 3600}
"""With these, what ends within the patience of a test was noticed, not waited for."""
SLOW_START = 30
"""Seconds for which a rank may be silent while it starts on a slow machine: not the least time-out that is allowed."""
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS")


def arguments(workdir: Path, **options: Any) -> list[str]:
    """A command line; a list of flags from keywords, ``True`` giving the bare flag."""
    words = [sys.executable, str(ROOT / "main.py"), "--workdir", str(workdir)]
    for flag, name in (("-cc", "config"), ("-sc", "sc")):
        if name in options:
            words += [flag, str(ROOT / options.pop(name))]
    for name, value in options.items():
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return words


def start(workdir: Path, **options: Any) -> subprocess.Popen[str]:
    """``cwd`` among the options is the folder of the command, by default that of the project."""
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
    cwd = options.pop("cwd", ROOT)
    return subprocess.Popen(
        arguments(workdir, **options),
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(workdir: Path, expect: int = 0, **options: Any) -> str:
    """Run to the end; the output."""
    return end(start(workdir, **options), expect)


def ranks_of(process: subprocess.Popen[str]) -> dict[int, psutil.Process]:
    """The rank processes of a running command."""
    found = {}
    with contextlib.suppress(psutil.NoSuchProcess):  # it may be ending
        for child in psutil.Process(process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                environment = child.environ()
                if "RANK" in environment:
                    found[int(environment["RANK"])] = child
    return found


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for something that a running command does."""

    def still_runs() -> None:
        assert process.poll() is None, f"the command ended early:\n{process.communicate()[0]}"

    wait_for(condition, "what the command should do", still_runs)


def end(process: subprocess.Popen[str], expect: int | None = 0) -> str:
    """The output of a command that has to end by itself; ``None`` expects no exit code."""
    output, _ = process.communicate(timeout=PATIENCE)
    assert expect is None or process.returncode == expect, f"exit code {process.returncode}, not {expect}:\n{output}"
    return output


def alive(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that still run."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def wait_for_end(processes: Iterable[psutil.Process]) -> None:
    """Wait until none of them runs."""
    processes = list(processes)
    wait_for(lambda: not alive(processes), f"the end of {processes}")


def kill_all(process: subprocess.Popen[str]) -> None:
    """SIGKILL to the agent and all ranks at once, as a power cut would."""
    victims = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for victim in victims:
        victim.send_signal(signal.SIGKILL)
    process.communicate()
    wait_for_end(victims)


def snapshot(workdir: Path, name: str = "checkpoint.pth") -> dict[str, Any]:
    return torch.load(workdir / "checkpoints" / name, weights_only=True)


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two nested containers differ, tensors compared bit by bit."""
    if isinstance(a, torch.Tensor):
        same = isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
        return [] if same else [where]
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [entry for key in a for entry in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [entry for i, (x, y) in enumerate(zip(a, b, strict=True)) for entry in differences(x, y, f"{where}/{i}")]
    return [] if a == b else [f"{where}: {a!r} != {b!r}"]


def state_differences(a: Path, b: Path) -> list[str]:
    """Where the trained state of two runs' newest snapshots differs."""
    first, second = snapshot(a), snapshot(b)
    keys = ("step", "networks", "emas", "optimizers")
    return [entry for key in keys for entry in differences(first[key], second[key])]
