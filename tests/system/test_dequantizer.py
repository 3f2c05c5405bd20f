"""A score model, its dequantizer, and likelihoods with it, by the commands that a user gives."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.system.command import snapshot
from tests.system.in_process import refusal, run_here
from util.run_file import read_run_file

SCORE: dict[str, Any] = {
    "config": "configs/smoke/scoreflow_subvp.txt",
    "n_channels": 8,
    "ch_mult": "1",
    "attn_resolutions": "8",
    "total_batch_size": 16,
    "n_warmup_iters": 2,
    "sampling_method": "ode",
    "sampling_solver": "rk4",
    "sampling_n_steps": 1,
    "eval_freq": 0,
}
DEQUANTIZER = {
    **SCORE,
    "special_config": "configs/smoke/scoreflow_dequantizer.txt",
    "mode": "train_deq",
    "dequantizer_n_filters": 4,
    "n_train_iters": 4,
}


@pytest.mark.slow
def test_score_model_dequantizer_likelihoods(tmp_path: Path) -> None:
    assert "no intact snapshot" in refusal(tmp_path, **DEQUANTIZER)
    run_here(tmp_path, **SCORE, n_train_iters=3)
    run_here(tmp_path, **DEQUANTIZER)
    assert snapshot(tmp_path)["step"] == 3
    trained = snapshot(tmp_path / "dequantizer")
    assert trained["step"] == 4
    assert set(trained["networks"]) == {"dequantizer"}
    assert read_run_file(tmp_path / "dequantizer")["score_snapshot"]["step"] == 3
    assert read_run_file(tmp_path)["step"] == 3
    assert "finished run" in refusal(tmp_path, **DEQUANTIZER)
    assert "dequantizer_n_filters: 4 -> 8" in refusal(tmp_path, **{**DEQUANTIZER, "dequantizer_n_filters": 8})

    values = {}
    for folder, more in (("uniform", {}), ("flow", {"eval_dequantizer": True})):
        run_here(
            tmp_path, **SCORE, mode="eval", eval_likelihood=True, eval_folder=folder, eval_n_items=6, bound_n_times=3,
            likelihood_solver="rk4", likelihood_n_steps=2, **more,
        )  # fmt: skip
        values[folder] = json.loads((tmp_path / folder / "results.json").read_text())["results"]
    for name in ("nelbo", "negative_log_likelihood"):
        uniform, flow = values["uniform"][name], values["flow"][name]
        assert uniform["terms"]["dequantization"] == 0
        assert flow["terms"]["dequantization"] != 0
        assert sum(flow["terms"].values()) == pytest.approx(flow["value"])
        assert flow["value"] != uniform["value"]
