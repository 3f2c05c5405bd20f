"""A system that is not ours (docs/examples/flow_matching.py) has what ours have, from a folder that is not ours."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.configuration import configured
from tests.system.command import ROOT, kill_all, run, snapshot, start, state_differences, wait_until
from tests.system.test_world_size import assert_same, results, sample_hash
from trainers.check import check_config
from util.errors import UsageError
from util.run_file import read_run_file

N_STEPS = 12
OPTIONS: dict[str, Any] = {
    "system": "flow_matching:SYSTEM",
    "n_train_iters": N_STEPS,
    "total_batch_size": 8,
    "training_batch_size": 4,
    "snapshot_freq": 3,
    "log_freq": 1,
    "sample_freq": 1000,
    "n_warmup_iters": 2,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """An undisturbed run on two ranks in a folder of its own, and its options."""
    folder = tmp_path_factory.mktemp("mine")
    for name in ("flow_matching.py", "flow_matching_digits.txt"):
        shutil.copy(ROOT / "docs" / "examples" / name, folder)
    options = {**OPTIONS, "config": folder / "flow_matching_digits.txt", "cwd": folder}
    run(folder / "whole", n_gpus_per_node=2, **options)
    return folder / "whole", options


@pytest.mark.slow
def test_killed_it_goes_on_as_if_it_had_not_been(whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    options = {**whole[1], "n_gpus_per_node": 2}
    killed = start(tmp_path, **options)
    wait_until(lambda: read_run_file(tmp_path).get("step", 0) >= 5, killed)
    kill_all(killed)
    assert snapshot(tmp_path)["step"] < N_STEPS
    run(tmp_path, **options, mode="continue")
    assert not state_differences(whole[0], tmp_path)


@pytest.mark.slow
def test_its_values_do_not_depend_on_the_number_of_ranks(whole: tuple[Path, dict[str, Any]]) -> None:
    workdir, options = whole
    evaluation = {
        "mode": "eval", "eval_likelihood": True, "eval_fid": True, "eval_sample": True, "eval_n_items": 7,
        "eval_n_samples": 5, "eval_fid_samples": 9, "testing_batch_size": 3, "sampling_batch_size": 3,
    }  # fmt: skip
    for n_ranks in (1, 2):
        run(workdir, n_gpus_per_node=n_ranks, eval_folder=f"on_{n_ranks}", **{**options, **evaluation})
    assert_same(results(workdir, "on_2"), results(workdir, "on_1"))
    assert sample_hash(workdir, "on_2") == sample_hash(workdir, "on_1")
    assert {"negative_log_likelihood", "fid"} <= results(workdir, "on_1").keys()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:SYSTEM", "cannot be loaded"),
        ("trainers.cld:NOTHING", "cannot be loaded"),
        ("trainers.cld.options:CldOptions", "no trainers.system.System"),
        ("flow", "one of cld"),
    ],
)
def test_a_system_that_is_none_is_one_line(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        configured(system=name)
    assert "\n" not in str(caught.value)


def test_options_of_a_system_from_outside_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "examples"))
    with pytest.raises(UsageError, match="--beta0 is not read by --system flow_matching:SYSTEM"):
        configured(system="flow_matching:SYSTEM", beta0=3)
    with pytest.raises(UsageError, match="shown for images"):
        check_config(configured(system="flow_matching:SYSTEM", dataset="diamond", is_image=False))
