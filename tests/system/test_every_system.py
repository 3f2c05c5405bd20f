"""What every system owes its users: exact resume, on other ranks too, and the same evaluation on any number of them."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.system.command import kill_all, run, snapshot, start, state_differences, wait_until
from tests.system.teacher import write_teacher
from tests.system.test_world_size import assert_same, results, sample_hash
from util.run_file import read_run_file

N_STEPS = 12
COMMON: dict[str, Any] = {
    "n_train_iters": N_STEPS,
    "total_batch_size": 8,
    "training_batch_size": 4,
    "snapshot_freq": 3,
    "save_freq": 4,
    "eval_freq": 0,
    "sample_freq": 1000,
    "log_freq": 1,
    "n_warmup_iters": 2,
    "seed": 3,
}
EVALUATION: dict[str, Any] = {
    "mode": "eval",
    "eval_loss": True,
    "eval_likelihood": True,
    "eval_sample": True,
    "eval_fid": True,
    "eval_n_items": 7,
    "eval_n_samples": 5,
    "eval_fid_samples": 9,
    "testing_batch_size": 3,
    "sampling_batch_size": 3,
}
LIKELIHOOD_BY_ODE = {"likelihood_rtol": 1e-2, "likelihood_atol": 1e-2}
SYSTEMS: dict[str, dict[str, Any]] = {
    "scoreflow": {
        "config": "configs/smoke/scoreflow_subvp.txt",
        "n_discrete_steps": 21,
        "bound_n_times": 3,
        **LIKELIHOOD_BY_ODE,
    },
    "idode": {
        "config": "configs/smoke/idode_sp.txt",
        "second_order": "true",
        "gradient_accumulation": 2,
        "sampling_rtol": 1e-2,
        **LIKELIHOOD_BY_ODE,
    },
    "ddpm": {"config": "configs/smoke/ddpm.txt", "n_discrete_steps": 4, "bound_n_labels": 5},
    "hsivi": {"config": "configs/smoke/hsivi.txt", "f_learning_times": 3, "eval_likelihood": "false"},
    # Batch norm sees a micro-batch at a time, so one rank has to take the batch of two at once.
    "indm": {"config": "configs/smoke/indm_vp_nll.txt", "training_batch_size": 8, **LIKELIHOOD_BY_ODE},
}


@pytest.fixture(scope="module", params=SYSTEMS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """An undisturbed run on two ranks, and its options."""
    options = {**COMMON, **SYSTEMS[request.param]}
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "hsivi":
        options["pretrained_model"] = write_teacher(folder / "teacher.pth")
    workdir = folder / "whole"
    run(workdir, n_gpus_per_node=2, **options)
    return workdir, options


@pytest.mark.slow
def test_killed_run_equals_undisturbed_run(whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    workdir, options = whole
    process = start(tmp_path, n_gpus_per_node=2, **options)
    wait_until(lambda: read_run_file(tmp_path).get("step", 0) >= 5, process)
    kill_all(process)
    assert snapshot(tmp_path)["step"] < N_STEPS
    run(tmp_path, n_gpus_per_node=2, **{**options, "mode": "continue"})
    assert state_differences(workdir, tmp_path) == []


@pytest.mark.slow
def test_continued_on_one_rank_it_stays_the_same_run(whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    workdir, options = whole
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(workdir / "checkpoints" / "checkpoint_4.pth", tmp_path / "checkpoints")
    shutil.copy(workdir / "config.txt", tmp_path)
    run(tmp_path, n_gpus_per_node=1, **{**options, "mode": "continue"})
    two, one = snapshot(workdir), snapshot(tmp_path)
    assert one["step"] == two["step"] == N_STEPS
    for name, network in two["networks"].items():
        for key, value in network.items():
            # Noise and data belong to samples, so only the order of summation differs.
            torch.testing.assert_close(one["networks"][name][key], value, rtol=1e-3, atol=2e-4, msg=f"{name} {key}")


@pytest.mark.slow
def test_evaluation_does_not_depend_on_the_number_of_ranks(whole: tuple[Path, dict[str, Any]]) -> None:
    workdir, options = whole
    for n_ranks in (1, 2):
        run(workdir, n_gpus_per_node=n_ranks, eval_folder=f"on_{n_ranks}", **{**EVALUATION, **options})
    assert_same(results(workdir, "on_2"), results(workdir, "on_1"))
    assert sample_hash(workdir, "on_2") == sample_hash(workdir, "on_1")
    for entry in results(workdir, "on_1").values():
        if "terms" in entry:
            assert sum(entry["terms"].values()) == pytest.approx(entry["value"], rel=1e-9)


@pytest.mark.slow
def test_dequantizer_of_a_score_model(tmp_path: Path) -> None:
    options = {**COMMON, **SYSTEMS["scoreflow"]}
    run(tmp_path / "whole", **options)
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    options |= {"mode": "train_deq", "sc": "configs/smoke/scoreflow_dequantizer.txt", "n_gpus_per_node": 2}
    run(tmp_path / "whole", **options)
    process = start(tmp_path / "killed", **options)
    dequantizer = tmp_path / "killed" / "dequantizer"
    wait_until(lambda: read_run_file(dequantizer).get("step", 0) >= 5, process)
    kill_all(process)
    assert snapshot(dequantizer)["step"] < N_STEPS
    run(tmp_path / "killed", **options)
    assert state_differences(tmp_path / "whole" / "dequantizer", dequantizer) == []

    for n_ranks in (1, 2):
        evaluation = {**options, **EVALUATION, "eval_dequantizer": True, "eval_folder": f"on_{n_ranks}"}
        for name in ("eval_loss", "eval_sample", "eval_fid"):
            del evaluation[name]
        run(tmp_path / "whole", **{**evaluation, "n_gpus_per_node": n_ranks})
    entries = results(tmp_path / "whole", "on_1")
    assert_same(results(tmp_path / "whole", "on_2"), entries)
    assert all("dequantization" in entry["terms"] for entry in entries.values())
