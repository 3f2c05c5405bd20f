"""Under torchrun, with either of its ways to meet, and with restarts of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from launch.addresses import LOOPBACK, listen
from tests.patience import PATIENCE
from tests.system.command import LAUNCHER_VARIABLES, ROOT, arguments, run, state_differences, wait_until
from util.run_file import read_run_file

TINY: dict[str, Any] = {
    "config": "configs/smoke/tiny.txt",
    "device": "cpu",
    "n_train_iters": 60,
    "snapshot_freq": 5,
    "sample_freq": 1_000_000,
    "log_freq": 1,
    "seed": 5,
}


def torchrun(how: list[str], workdir: Path, **options: Any) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
    environment["OMP_NUM_THREADS"] = "1"
    _, *script = arguments(workdir, **options)
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *how, *script],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def free_port() -> int:
    with listen(LOOPBACK, 0) as taken:
        return int(taken.getsockname()[1])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("undisturbed") / "one"
    run(workdir, **TINY, n_gpus_per_node=2)
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("rendezvous", ["static", "c10d"])
def test_two_nodes_and_a_restart(rendezvous: str, undisturbed: Path, tmp_path: Path) -> None:
    port = free_port()
    meet = {
        "static": ["--master-addr", LOOPBACK, "--master-port", str(port)],
        "c10d": ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{LOOPBACK}:{port}", "--rdzv-id", "7"],
    }[rendezvous]
    nodes = [
        torchrun(
            ["--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(node_rank), "--max-restarts", "1", *meet],
            tmp_path / "two", **TINY, overwrite=True,
        )
        for node_rank in (0, 1)
    ]  # fmt: skip
    wait_until(lambda: read_run_file(tmp_path / "two").get("step", 0) >= 8, nodes[0])
    psutil.Process(nodes[1].pid).children()[0].kill()
    try:
        output = [node.communicate(timeout=PATIENCE)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(output)
    assert any("continuing from" in text for text in output)
    assert state_differences(undisturbed, tmp_path / "two") == []
