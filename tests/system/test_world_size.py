"""The same evaluation on any number of ranks, also when one of them is killed half way."""

import hashlib
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.system.command import end, kill_all, run, start, wait_until
from tests.system.in_process import run_here

TINY = {"config": "configs/smoke/tiny.txt", "seed": 5}
EVALUATION: dict[str, Any] = {
    **TINY,
    "mode": "eval",
    "eval_loss": True,
    "eval_likelihood": True,
    "eval_sample": True,
    "eval_fid": True,
    "eval_n_items": 53,
    "eval_n_samples": 21,
    "eval_fid_samples": 75,
    "testing_batch_size": 9,
    "sampling_batch_size": 8,
    "likelihood_rtol": 1e-2,
    "likelihood_atol": 1e-2,
}
INTERRUPTED = {
    **{
        name: value for name, value in EVALUATION.items() if name not in ("eval_loss", "eval_likelihood", "eval_sample")
    },
    "sampling_batch_size": 2,
    "n_discrete_steps": 20,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("trained") / "run"
    run_here(workdir, **TINY)
    return workdir


@pytest.fixture(scope="module")
def undisturbed(trained: Path) -> dict[str, Any]:
    """What an evaluation finds that nothing interrupts."""
    run(trained, **{**INTERRUPTED, "eval_folder": "undisturbed"}, n_gpus_per_node=2)
    return results(trained, "undisturbed")


def results(workdir: Path, folder: str) -> dict[str, Any]:
    entries = json.loads((workdir / folder / "results.json").read_text())["results"]
    return {name: {key: value for key, value in entry.items() if key != "seconds"} for name, entry in entries.items()}


def flat(entries: Any, where: str = "") -> dict[str, Any]:
    if isinstance(entries, dict):
        return {name: value for key in entries for name, value in flat(entries[key], f"{where}/{key}").items()}
    return {where: entries}


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Numbers to 1e-6 relative, everything else exactly."""
    found, expected = flat(found), flat(expected)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, float):
            assert found[name] == pytest.approx(value, rel=1e-6), name
        else:
            assert found[name] == value, name


def sample_hash(workdir: Path, folder: str) -> str:
    return hashlib.sha256((workdir / folder / "samples.npz").read_bytes()).hexdigest()


@pytest.mark.slow
def test_values_and_samples_do_not_depend_on_the_number_of_ranks(trained: Path) -> None:
    for n_ranks in (1, 2, 3):
        run(trained, **EVALUATION, eval_folder=f"on_{n_ranks}", n_gpus_per_node=n_ranks)
    one = results(trained, "on_1")
    assert one["fid"]["n_samples"] == 75
    assert one["nelbo"]["n_samples"] == one["loss"]["n_samples"] == 53
    assert one["samples"]["n_samples"] == 21
    assert sum(one["nelbo"]["terms"].values()) == pytest.approx(one["nelbo"]["value"], rel=1e-9)
    for other in ("on_2", "on_3"):
        assert_same(results(trained, other), one)
        assert sample_hash(trained, other) == sample_hash(trained, "on_1")


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [("kill", None), (signal.SIGTERM, 75)])
def test_interrupted_evaluation_goes_on_with_what_is_missing(
    trained: Path, undisturbed: dict[str, Any], how: Any, code: int | None
) -> None:
    folder = trained / f"interrupted_{code}"
    options = {**INTERRUPTED, "eval_folder": folder.name}
    process = start(trained, **options, n_gpus_per_node=2)
    chunks = folder / "fid_features.chunks"
    wait_until(lambda: len(list(chunks.glob("*.npz"))) >= 6, process)
    if how == "kill":
        kill_all(process)
    else:
        process.send_signal(how)
        end(process, code)
    done = {path: path.stat().st_mtime_ns for path in chunks.glob("*.npz")}
    assert 6 <= len(done) < 38
    process = start(trained, **options, n_gpus_per_node=1)
    wait_until(lambda: len(list(chunks.glob("*.npz"))) > len(done) + 3, process)
    unchanged = {path: path.stat().st_mtime_ns for path in done}
    end(process)
    assert unchanged == done, "a finished chunk was computed again"
    assert_same(results(trained, folder.name), undisturbed)
    assert not chunks.exists(), "chunks are merged into one file"
