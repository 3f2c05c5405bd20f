"""``--follow``: each kept snapshot of a run that trains elsewhere is evaluated once, whatever happens."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.system.command import end, kill_all, run, start, wait_until
from tests.system.in_process import refusal
from util.snapshot import inspect_snapshot

RUN = {"config": "configs/smoke/tiny.txt", "device": "cpu"}
FOLLOWS: dict[str, Any] = {
    **RUN, "mode": "eval", "eval_folder": "followed", "eval_loss": True, "eval_fid": True, "eval_fid_samples": 40,
    "sampling_batch_size": 8, "follow": "order",
}  # fmt: skip


def evaluated(folder: Path) -> list[dict[str, Any]]:
    path = folder / "followed" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def digests(folder: Path) -> dict[int, str]:
    found = [inspect_snapshot(path) for path in (folder / "checkpoints").glob("checkpoint_[0-9]*.pth")]
    return {snapshot.step: snapshot.sha256 for snapshot in found}


@pytest.mark.slow
def test_every_kept_snapshot_is_evaluated_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = start(folder, **FOLLOWS, n_gpus_per_node=2)  # before there is a run
    wait_until((folder / "logs").is_dir, first)
    training = start(folder, **RUN, n_train_iters=60, save_freq=10)
    wait_until(lambda: len(evaluated(folder)) >= 1, first)
    kill_all(first)
    second = start(folder, **FOLLOWS)
    wait_until(lambda: len(evaluated(folder)) >= 2, second)
    second.send_signal(signal.SIGTERM)
    end(second, 75)
    end(training)
    third = start(folder, **FOLLOWS, n_gpus_per_node=2)
    assert "every kept snapshot is evaluated" in end(third)

    lines = evaluated(folder)
    assert {line["step"]: line["digest"] for line in lines} == digests(folder)
    assert [line["step"] for line in lines] == [10, 20, 30, 40, 50, 60]
    for line in lines:
        results = json.loads((folder / "followed" / f"step_{line['step']:08d}" / "results.json").read_text())
        assert results["checkpoint"]["step"] == line["step"]
        for name in ("loss", "fid"):
            assert results["results"][name]["value"] == line[f"evaluation/{name}"]
    # By itself, and without having followed, the last one has the same values.
    run(folder, **{**FOLLOWS, "follow": "", "eval_folder": "alone", "ckpt_file": "checkpoint_60.pth"})
    alone = json.loads((folder / "alone" / "results.json").read_text())["results"]
    assert alone["fid"]["value"] == pytest.approx(lines[-1]["evaluation/fid"], abs=1e-9)


@pytest.mark.slow
def test_newest_first_and_past_what_is_damaged(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(folder, **RUN, n_train_iters=8, save_freq=2)
    damaged = folder / "checkpoints" / "checkpoint_4.pth"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.unlink()
    damaged.write_bytes(content)
    (folder / "checkpoints" / "checkpoint_5.pth").symlink_to(folder / "absent")
    loss_only = {**FOLLOWS, "eval_fid": False, "follow": "newest"}
    output = run(folder, **loss_only)
    assert "checkpoint_4.pth: its contents do not match its checksum; it is passed over" in output
    assert "checkpoint_5.pth" in output
    assert [line["step"] for line in evaluated(folder)] == [8, 6, 2]
    # A run that was started again: the same steps, of other snapshots.
    run(folder, **RUN, n_train_iters=4, save_freq=2, seed=1, overwrite=True)
    run(folder, **loss_only)
    assert [line["step"] for line in evaluated(folder)][3:] == [4, 2]
    assert {line["step"]: line["digest"] for line in evaluated(folder)[3:]} == digests(folder)


@pytest.mark.slow
def test_a_failed_run_is_waited_for_and_not_for_ever(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run(folder, **RUN, n_train_iters=4, save_freq=2)
    status = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**status, "state": "failed", "exit_reason": "a fault", "updated": 0}))
    output = run(folder, 1, **{**FOLLOWS, "eval_fid": False})
    assert "the run failed at step 4 (a fault)" in output
    assert [line["step"] for line in evaluated(folder)] == [2, 4]


def test_refused(tmp_path: Path) -> None:
    assert "--follow evaluates every kept snapshot" in refusal(tmp_path, **{**FOLLOWS, "ckpt_file": "checkpoint_2.pth"})
    assert "--follow evaluates every kept snapshot" in refusal(tmp_path, **{**FOLLOWS, "mode": "sample"})
    assert not list(tmp_path.iterdir())
