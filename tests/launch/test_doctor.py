"""``launch doctor`` finds nothing wrong here, and finds what is made wrong."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.system.command import LAUNCHER_VARIABLES, ROOT, end

TINY = ["-cc", "configs/smoke/tiny.txt", "--device", "cpu"]
CHECKS = (
    "process group", "devices", "versions", "names", "ports", "all-reduce 4 KiB", "shared folder", "disk space",
    "clocks", "data workers", "data set",
)  # fmt: skip


def start(root: Path, *words: str, before: Sequence[str] = (), **variables: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
    return subprocess.Popen(
        [*before, sys.executable, "-m", "launch", "doctor", *TINY, *words],
        cwd=root, env={**environment, "OMP_NUM_THREADS": "1", **variables},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def doctor(*words: str, expect: int = 0) -> dict[str, str]:
    """The verdict on each check, and the whole output under the empty name."""
    output = end(start(ROOT, *words), expect)
    return {"": output, **verdicts(output)}


def verdicts(output: str) -> dict[str, str]:
    lines = [line for line in output.splitlines() if line.startswith(("ok ", "warning ", "fault "))]
    return {line[9:].split("  ")[0]: line.split()[0] for line in lines}


@pytest.mark.slow
def test_two_ranks_of_this_machine(tmp_path: Path) -> None:
    found = doctor("--workdir", str(tmp_path), "--n_gpus_per_node", "2")
    assert {found[check] for check in CHECKS} <= {"ok", "warning"}
    assert "all is well" in found[""]
    assert "2 ranks (gloo)" in found[""]
    # It leaves the run alone: nothing of it but its own folder.
    assert [entry.name for entry in tmp_path.iterdir()] == ["doctor"]
    assert not (tmp_path / "doctor" / "shared").exists()


@pytest.mark.slow
def test_missing_data_is_a_fault_and_the_other_checks_go_on(tmp_path: Path) -> None:
    words = ["--workdir", str(tmp_path / "run"), "--dataset", "lmdb", "--data_location", str(tmp_path / "none")]
    found = doctor(*words, expect=1)
    assert found["data set"] == "fault"
    assert found["shared folder"] == "ok"
    assert "doctor found faults: data set" in found[""]


@pytest.mark.slow
def test_nodes_with_different_code_and_folders_of_their_own(tmp_path: Path) -> None:
    """Two nodes whose file systems and checkouts differ, as they do when a folder is not shared."""
    other = tmp_path / "other"
    other.mkdir()
    for name in ("configs", "diffusion", "evaluators", "launch", "main.py", "models", "trainers"):
        (other / name).symlink_to(ROOT / name)
    subprocess.run(["cp", "-r", str(ROOT / "util"), str(other / "util")], check=True)
    (other / "util" / "changed.py").write_text("")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    nodes = []
    for rank, root in enumerate((ROOT, other)):
        # As torchrun starts them, which compares nothing itself.
        place = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": port}
        variables = {name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"}
        nodes.append(start(root, "--workdir", str(tmp_path / f"folder_{rank}"), **variables))
    outputs = [end(node, 1) for node in nodes]
    found = verdicts(outputs[0])
    assert found["shared folder"] == "fault"
    assert "is it on a shared file system?" in outputs[0]
    assert found["versions"] == "fault"
    assert "doctor found faults: versions, shared folder" in outputs[1]


def test_bad_arguments(tmp_path: Path) -> None:
    assert "--workdir is missing" in doctor(expect=2)[""]
    assert "did you mean '--workdir'?" in doctor("--wokdir", str(tmp_path), expect=2)[""]
