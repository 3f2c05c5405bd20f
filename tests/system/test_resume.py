"""A run that is killed and continued ends bit for bit where an undisturbed one does."""

import json
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.system.command import end, kill_all, ranks_of, run, snapshot, start, state_differences, wait_until
from tests.system.in_process import refusal, run_here
from util.run_file import read_run_file

SMALL = {
    "config": "configs/smoke/tiny.txt",
    "n_gpus_per_node": 2,
    "n_train_iters": 40,
    "snapshot_freq": 5,
    "log_freq": 1,
    "seed": 11,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout, accumulation, workers, mixed precision": {
        "dropout": 0.3, "gradient_accumulation": 2, "n_workers": 2, "random_flip": True,
        "autocast_train": True, "autocast_dtype": "fp16",
    },
    # Sums of three depend on where a gradient lies in its bucket.
    "three ranks": {"n_gpus_per_node": 3, "gradient_compression": "bf16"},
}  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a plain run."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    run(workdir, **SMALL)
    return workdir


def logged_steps(workdir: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def tensorboard_steps(workdir: Path) -> list[int]:
    events = EventAccumulator(str(workdir / "tensorboard"))
    events.Reload()
    return [event.step for event in events.Scalars("loss")]


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_run_equals_undisturbed_run(variant: str, undisturbed: Path, tmp_path: Path) -> None:
    options = {**SMALL, **VARIANTS[variant]}
    whole = undisturbed
    if VARIANTS[variant]:
        whole = tmp_path / "whole"
        run(whole, **options)
    process = start(tmp_path / "killed", **options)
    at = random.Random(variant).randint(17, 30)
    wait_until(lambda: read_run_file(tmp_path / "killed").get("step", 0) >= at, process)
    kill_all(process)
    assert snapshot(tmp_path / "killed")["step"] < 40
    output = run(tmp_path / "killed", mode="continue", **options)
    assert "continuing from" in output
    assert state_differences(whole, tmp_path / "killed") == []
    for workdir in (whole, tmp_path / "killed"):
        assert logged_steps(workdir) == list(range(1, 41))
        assert tensorboard_steps(workdir) == list(range(1, 41))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "to_rank"), [(signal.SIGTERM, False), (signal.SIGUSR1, True)])
def test_stop_signal_loses_nothing(number: signal.Signals, to_rank: bool, undisturbed: Path, tmp_path: Path) -> None:
    options = {**SMALL, "snapshot_freq": 0}
    process = start(tmp_path / "stopped", **options)
    wait_until(lambda: read_run_file(tmp_path / "stopped").get("step", 0) >= 10, process)
    (ranks_of(process)[1] if to_rank else process).send_signal(number)
    end(process, 75)
    status = read_run_file(tmp_path / "stopped")
    assert status["state"] == "preempted"
    assert status["exit_reason"] == number.name
    stopped_at = snapshot(tmp_path / "stopped")["step"]
    assert stopped_at == status["step"] == status["last_snapshot"]["step"] == logged_steps(tmp_path / "stopped")[-1]
    # The same command again carries the unfinished run on.
    run(tmp_path / "stopped", **options)
    assert state_differences(undisturbed, tmp_path / "stopped") == []
    assert logged_steps(tmp_path / "stopped") == list(range(1, 41))


@pytest.mark.slow
def test_total_batch_size_keeps_the_run_on_another_world_size(tmp_path: Path) -> None:
    import torch

    options = {**SMALL, "total_batch_size": 24, "training_batch_size": 8, "dropout": 0.0, "n_train_iters": 15}
    ends = []
    for n_ranks in (1, 2, 3):
        options["n_gpus_per_node"] = n_ranks
        run(tmp_path / str(n_ranks), **options)
        ends.append(snapshot(tmp_path / str(n_ranks))["networks"]["score"])
    for other in ends[1:]:
        for name, value in ends[0].items():
            # Noise and data belong to samples, so only the order of summation differs.
            torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_fresh_noise_and_refusals(tmp_path: Path) -> None:
    options = {**SMALL, "n_gpus_per_node": 1, "n_train_iters": 10}
    run_here(tmp_path / "a", **options)
    assert "finished run" in refusal(tmp_path / "a", **options)
    assert "seed: 11 -> 12" in refusal(tmp_path / "a", **{**options, "seed": 12})
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    longer = {**options, "n_train_iters": 20}
    run_here(tmp_path / "a", mode="continue", **longer)
    run_here(tmp_path / "b", **longer)
    assert state_differences(tmp_path / "a", tmp_path / "b") == []
    run_here(tmp_path / "c", mode="continue", cont_nbr=1, **longer)
    assert state_differences(tmp_path / "a", tmp_path / "c") != []
    run_here(tmp_path / "a", overwrite=True, **options)
    assert snapshot(tmp_path / "a")["step"] == 10
    run_here(tmp_path / "b", mode="continue", checkpoint="checkpoint_20.pth", **{**longer, "n_train_iters": 22})
    assert snapshot(tmp_path / "b")["step"] == 22
