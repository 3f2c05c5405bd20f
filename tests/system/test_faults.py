"""Damaged snapshots, a full disk, kills at random instants, a rank that goes away."""

import os
import random
import re
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from tests.patience import PATIENCE
from tests.system.command import (
    NO_TIME_OUTS,
    alive,
    end,
    kill_all,
    ranks_of,
    run,
    snapshot,
    start,
    state_differences,
    wait_for_end,
    wait_until,
)
from tests.system.in_process import run_here
from trainers.run import choose_snapshot
from util.run_file import read_run_file
from util.snapshot import DamagedSnapshot, inspect_snapshot

OPTIONS = {"config": "configs/smoke/tiny.txt", "n_train_iters": 20, "snapshot_freq": 1, "log_freq": 1, "seed": 3}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    run(workdir, **OPTIONS)
    return workdir


@pytest.mark.slow
def test_damaged_snapshots(undisturbed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(tmp_path / "run", **{**OPTIONS, "n_train_iters": 12})
    path = tmp_path / "run/checkpoints/checkpoint.pth"
    (tmp_path / "run/checkpoints/checkpoint_12.pth").unlink()
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0x40
    for damaged in (content[:-1000], b"", content):
        path.unlink()
        path.write_bytes(damaged)
        with caplog.at_level("WARNING"):
            newest = choose_snapshot(path.parent, "", "--checkpoint")
        assert newest == path.with_name("checkpoint_previous.pth")
        assert re.search(r"checkpoint\.pth: .*; it is not used", caplog.text)
        caplog.clear()
    output = run(tmp_path / "run", mode="continue", **OPTIONS)
    assert re.search(r"checkpoint\.pth: .*; it is not used", output)
    assert re.search(r"continuing from .*checkpoint_previous\.pth \(step 11\)", output)
    assert state_differences(undisturbed, tmp_path / "run") == []


@pytest.mark.slow
def test_kills_at_random_instants(undisturbed: Path, tmp_path: Path) -> None:
    """SIGKILL to everything, from start-up to the end, with a snapshot every step: 20 times, in two runs at once."""
    started = time.monotonic()
    run(tmp_path / "timing", **OPTIONS)
    length = time.monotonic() - started
    with ThreadPoolExecutor(2) as both:
        list(both.map(lambda seed: _survive_ten_kills(tmp_path / str(seed), seed, length), (1, 2)))
    for seed in (1, 2):
        assert state_differences(undisturbed, tmp_path / str(seed)) == []


def _survive_ten_kills(workdir: Path, seed: int, length: float) -> None:
    generator = random.Random(seed)
    reached = 0
    for _ in range(10):
        process = start(workdir, **OPTIONS)
        try:
            process.wait(timeout=generator.uniform(0.3 * length, 1.05 * length))
        except subprocess.TimeoutExpired:
            kill_all(process)
        reported = read_run_file(workdir).get("last_snapshot", {"step": 0})["step"]
        assert reported >= reached, "a step that was reported as saved is gone"
        reached = reported
        if reached:
            intact = [entry.step for entry in _intact(workdir)]
            assert max(intact) >= reached
        if read_run_file(workdir).get("state") == "finished":
            return
    run(workdir, **OPTIONS)


def _intact(workdir: Path) -> list:
    found = []
    for path in (workdir / "checkpoints").glob("checkpoint*.pth"):
        try:
            found.append(inspect_snapshot(path))
        except DamagedSnapshot:
            continue
    return found


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="mounting a small tmpfs needs root")
def test_full_disk(undisturbed: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], check=True)
    try:
        process = start(disk / "run", **OPTIONS)
        wait_until(lambda: read_run_file(disk / "run").get("step", 0) >= 5, process)
        ballast = disk / "ballast"
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(1 << 16))
        output = end(process, 1)
        assert "disk full" in output
        saved = max(entry.step for entry in _intact(disk / "run"))
        assert saved >= 4
        ballast.unlink()
        output = run(disk / "run", mode="continue", **OPTIONS)
        assert f"(step {saved})" in output
        assert state_differences(undisturbed, disk / "run") == []
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.slow
def test_a_killed_rank_ends_the_command_before_any_time_out(tmp_path: Path) -> None:
    process = start(tmp_path / "run", **{**OPTIONS, "n_train_iters": 100_000}, n_gpus_per_node=3, **NO_TIME_OUTS)
    wait_until(lambda: read_run_file(tmp_path / "run").get("step", 0) >= 3, process)
    ranks = ranks_of(process)
    ranks[1].kill()
    output = end(process, 1)
    assert re.search(r"rank 1 on \S+ was killed by SIGKILL", output)
    assert not alive(ranks.values())
    assert read_run_file(tmp_path / "run")["state"] == "failed"


@pytest.mark.slow
def test_killed_agent_leaves_no_rank_behind(tmp_path: Path) -> None:
    process = start(tmp_path / "run", **{**OPTIONS, "n_train_iters": 100_000}, n_gpus_per_node=2, **NO_TIME_OUTS)
    wait_until(lambda: read_run_file(tmp_path / "run").get("step", 0) >= 3, process)
    ranks = ranks_of(process)
    process.kill()
    process.communicate(timeout=PATIENCE)
    wait_for_end(ranks.values())


@pytest.mark.slow
def test_non_finite_loss_names_step_rank_and_term(tmp_path: Path) -> None:
    """An absurd learning rate makes the weights overflow; the run has to stop, and say so."""
    options = {**OPTIONS, "n_train_iters": 400, "learning_rate": 1e30, "grad_clip": 0, "n_warmup_iters": 0}
    output = run(tmp_path / "run", expect=1, **options, n_gpus_per_node=2)
    found = re.search(r"non-finite training term '(\w+)' = (nan|inf) at step (\d+) on rank (\d)", output)
    assert found, output
    step = int(found[3])
    dumps = list((tmp_path / "run/diagnostics").glob(f"step_{step}_rank_*.pt"))
    assert dumps
    for path in dumps:
        dump = torch.load(path, weights_only=True)
        assert {int(position) // 16 for part in dump["positions"] for position in part} == {step - 1}
    assert snapshot(tmp_path / "run")["step"] < int(found[3])
    for value in snapshot(tmp_path / "run")["networks"]["score"].values():
        assert value.isfinite().all()


@pytest.mark.slow
def test_traceback_of_the_first_failing_rank_is_shown(tmp_path: Path) -> None:
    """A rank that cannot write its diagnostics is an error of ours, so its traceback is shown."""
    run_here(tmp_path / "run", **{**OPTIONS, "n_train_iters": 1})
    (tmp_path / "run" / "metrics.jsonl").unlink()
    (tmp_path / "run" / "metrics.jsonl").mkdir()
    output = run(tmp_path / "run", expect=1, mode="continue", **OPTIONS, n_gpus_per_node=2)
    assert "Traceback (most recent call last)" in output
    assert re.search(r"rank 0 on \S+ failed: ", output)
