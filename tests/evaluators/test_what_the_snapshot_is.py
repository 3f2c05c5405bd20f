"""An evaluation is of the model that the snapshot describes; results under other settings are not taken up again."""

import logging
from pathlib import Path
from typing import Any

import pytest

from tests.system.in_process import refusal, run_here
from tests.system.test_world_size import results

TINY = {"config": "configs/smoke/tiny.txt"}
SMALL: dict[str, Any] = {**TINY, "n_train_iters": 3, "seed": 3, "dropout": 0.0}
LOSS: dict[str, Any] = {"mode": "eval", "eval_loss": True, "eval_n_items": 16}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run_here(folder, **SMALL)
    return folder


@pytest.mark.parametrize(
    ("name", "other", "trained"),
    [
        ("center_image", "false", "true"),
        ("uniform_dequantization", "false", "true"),
        ("fir_kernel", "1,1", "1,3,3,1"),
        ("sde", "vpsde", "cld"),
        ("weighting", "likelihood", "reweightedv2"),
        ("n_channels", 32, 16),
        ("seed", 4, 3),
    ],
)
def test_another_value_of_what_defines_the_model_is_refused_by_name(
    name: str, other: Any, trained: Any, workdir: Path
) -> None:
    line = refusal(workdir, **{**TINY, **LOSS, name: other})
    assert f"--{name} {other}" in line
    assert f"trained with {name} = {trained}" in line


def test_what_is_not_given_comes_from_the_snapshot(workdir: Path) -> None:
    run_here(workdir, **TINY, **LOSS, eval_folder="by_snapshot")  # says nothing of the seed of the split
    run_here(workdir, **SMALL, **LOSS, eval_folder="by_command")
    assert results(workdir, "by_snapshot")["loss"]["value"] == results(workdir, "by_command")["loss"]["value"]


def test_how_a_model_is_trained_does_not_matter_to_its_evaluation(workdir: Path) -> None:
    run_here(workdir, **TINY, **LOSS, eval_folder="plain")
    run_here(workdir, **TINY, **LOSS, eval_folder="otherwise", learning_rate=7, n_train_iters=99, training_batch_size=3)
    assert results(workdir, "plain")["loss"]["value"] == results(workdir, "otherwise")["loss"]["value"]


@pytest.mark.parametrize("other", [{"eval_seed": 5}, {"published_behaviour": True}, {"likelihood_eps": 1e-4}])
def test_what_changes_a_value_is_computed_afresh_and_named(
    other: dict[str, Any], workdir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (name,) = other
    run_here(workdir, **TINY, **LOSS, eval_folder=name)
    with caplog.at_level(logging.WARNING):
        run_here(workdir, **TINY, **LOSS, eval_folder=name, **other)
    assert f"{name} " in caplog.text
    assert "starting afresh" in caplog.text


def test_places_and_speeds_leave_results_alone(workdir: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_here(workdir, **TINY, **LOSS, eval_folder="places")
    with caplog.at_level(logging.WARNING):
        run_here(workdir, **TINY, **LOSS, eval_folder="places", n_workers=1, log_freq=7, collective_timeout=99)
    assert "afresh" not in caplog.text
