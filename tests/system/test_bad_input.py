"""Bad input of every kind: exit code 2, one line that says what, where and what to do, no traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from evaluators.run import PeriodicEvaluation
from main import parse_config
from tests.system.command import arguments, run
from tests.system.in_process import NeverStopped, refusal, run_here
from trainers.run import train
from util.distributed import Distributed
from util.errors import UsageError
from util.snapshot import write_snapshot

TINY = {"config": "configs/smoke/tiny.txt", "n_train_iters": 2, "eval_n_samples": 4}


def message(output: str) -> str:
    """The error line; everything before it is ordinary output."""
    lines = [line for line in output.splitlines() if line.strip()]
    assert "Traceback" not in output, output
    assert [line for line in lines if line.startswith("error: ")] == [lines[-1]], output
    return lines[-1]


# What the user typed -> what the line has to name.
OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown flag": ({"n_channel": 3}, "did you mean '--n_channels'"),
    "wrong type": ({"beta0": "four"}, "--beta0"),
    "out of range": ({"dropout": 1.5}, "--dropout"),
    "no such choice": ({"optimizer": "SGD"}, "--optimizer"),
    "no such config": ({"sc": "nowhere.txt"}, "-sc"),
    "sscs without velocity": ({"sde": "vpsde", "sampling_method": "sscs"}, "--sampling_method sscs"),
    "attention nowhere": ({"attn_resolutions": "16"}, "16"),
    "size not divisible": ({"ch_mult": "1,1,1,1,1"}, "8"),
    "accumulation not divisible": ({"total_batch_size": 10, "gradient_accumulation": 3}, "--gradient_accumulation 3"),
    "mlp for images": ({"name": "mlp"}, "--name mlp"),
    "points as images": ({"dataset": "diamond"}, "is_image"),
    "images as points": ({"is_image": "false"}, "is_image"),
    "no such solver": ({"sampling_method": "ode", "sampling_solver": "euler99"}, "euler99"),
    "fixed solver without steps": ({"likelihood_solver": "rk4"}, "rk4"),
    "one step": ({"n_discrete_steps": 1}, "--n_discrete_steps 1"),
    "beta vanishes": ({"beta0": 0, "beta1": 0}, "beta0"),
    "no GPU": ({"device": "cuda"}, "--device cuda"),
    "wrong channels": ({"image_channels": 3}, "digits"),
    "wrong size": ({"image_size": 12}, "12"),
    "node rank": ({"node_rank": 3}, "--node_rank 3"),
    "continue nothing": ({"mode": "continue"}, "--mode continue"),
    "no cifar10": (
        {"dataset": "cifar10", "image_size": 32, "image_channels": 3, "attn_resolutions": 16, "data_location": "none"},
        "cifar-10",
    ),
    "dequantizer of another system": ({"mode": "train_deq"}, "--mode train_deq is for --system scoreflow"),
    "no imagenet32": (
        {
            "dataset": "imagenet32",
            "image_channels": 3,
            "attn_resolutions": 16,
            "image_size": 32,
            "data_location": "none",
        },
        "train_data_batch_1",
    ),
    "no celeba_64": (
        {
            "dataset": "celeba_64",
            "image_channels": 3,
            "attn_resolutions": 32,
            "image_size": 64,
            "data_location": "none",
        },
        "img_align_celeba",
    ),
    "size of another set": (
        {"dataset": "imagenet_64", "image_channels": 3, "attn_resolutions": 16, "image_size": 32},
        "set image_size 64",
    ),
    "no mnist": ({"dataset": "mnist", "image_size": 28, "attn_resolutions": 14, "data_location": "none"}, "mnist"),
    "no folder": ({"dataset": "folder", "data_location": "none"}, "none"),
    "no database": ({"dataset": "lmdb", "data_location": "none"}, "none"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options(case: str, tmp_path: Path) -> None:
    options, expected = OPTIONS[case]
    assert expected.lower() in refusal(tmp_path / "run", **{**TINY, **options}).lower()


# Found by the agent, by one rank, and by both of two.
END_TO_END: dict[str, dict[str, Any]] = {
    "unknown flag": {},
    "wrong channels": {},
    "size not divisible": {"n_gpus_per_node": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", END_TO_END)
def test_options_of_the_command(case: str, tmp_path: Path) -> None:
    options, expected = OPTIONS[case]
    output = run(tmp_path / "run", expect=2, **{**TINY, **options, **END_TO_END[case]})
    assert expected.lower() in message(output).lower()


def test_a_total_batch_that_does_not_divide_among_ranks(tmp_path: Path) -> None:
    words = arguments(tmp_path / "run", **TINY, total_batch_size=9)[2:]
    with pytest.raises(UsageError, match="--total_batch_size 9 does not divide among 2 ranks"):
        train(PeriodicEvaluation, lambda *_: ({}, {}), parse_config(words), Distributed(world_size=2), NeverStopped())


CONFIGS = {
    "unknown key": ("n_chanels = 16", "line 2: unknown key 'n_chanels'; did you mean 'n_channels'?"),
    "no value": ("n_channels", "line 2"),
    "bad value": ("n_channels = many", "line 2: n_channels = many"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_config_files(case: str, tmp_path: Path) -> None:
    text, expected = CONFIGS[case]
    (tmp_path / "bad.txt").write_text(f"# mine\n{text}\n")
    line = refusal(tmp_path / "run", **TINY, special_config=tmp_path / "bad.txt")
    assert f"{tmp_path / 'bad.txt'} {expected}" in line


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("trained") / "run"
    run_here(workdir, **TINY)
    return workdir


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damaged_snapshot(path: Path, trained: Path) -> None:
    path.write_bytes((trained / "checkpoints/checkpoint.pth").read_bytes())
    flip_a_byte(path)


def truncated_snapshot(path: Path, trained: Path) -> None:
    path.write_bytes((trained / "checkpoints/checkpoint.pth").read_bytes()[:5000])


def other_network(path: Path, trained: Path) -> None:
    state = torch.load(trained / "checkpoints/checkpoint.pth", weights_only=True)
    del state["networks"]["score"]["all_modules.1.weight"]
    write_snapshot(path, state)


def foreign_dictionary(path: Path, _trained: Path) -> None:
    write_snapshot(path, {"step": 3, "model": {}})


CHECKPOINTS = {
    "flipped byte": (damaged_snapshot, "do not match its checksum"),
    "truncated": (truncated_snapshot, "truncated"),
    "other network": (other_network, "all_modules.1.weight"),
    "foreign": (foreign_dictionary, "not a Scorefleet snapshot"),
    "text": (lambda path, _: path.write_text("hello"), "bad.pth"),
    "absent": (lambda path, _: None, "no such file"),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_checkpoints(case: str, trained: Path) -> None:
    make, expected = CHECKPOINTS[case]
    path = trained / "checkpoints" / "bad.pth"
    path.unlink(missing_ok=True)
    make(path, trained)
    options = {**TINY, "mode": "eval", "eval_loss": True, "ckpt_file": "bad.pth"}
    assert expected in refusal(trained, **options)
    path.unlink(missing_ok=True)


@pytest.mark.slow
def test_a_checkpoint_of_another_network_and_the_command(trained: Path) -> None:
    path = trained / "checkpoints" / "bad.pth"
    other_network(path, trained)
    output = run(trained, expect=2, **TINY, mode="eval", eval_loss=True, ckpt_file="bad.pth", n_gpus_per_node=2)
    assert "all_modules.1.weight" in message(output)
    path.unlink()


def text_file(path: Path) -> None:
    path.write_text("not an archive")


STATISTICS = {
    "absent": (lambda path: None, "statistics.npz"),
    "text": (text_file, "statistics.npz"),
    "other keys": (lambda path: np.savez(path, a=np.zeros(3)), "mu"),
    "other size": (lambda path: np.savez(path, mu=np.zeros(5), sigma=np.eye(5)), "5 features"),
    "not finite": (lambda path: np.savez(path, mu=np.full(64, np.nan), sigma=np.eye(64)), "mu"),
    "pickled": (lambda path: np.savez(path, mu=np.array([{}], dtype=object), sigma=np.eye(64)), "statistics.npz"),
}


@pytest.mark.parametrize("case", STATISTICS)
def test_statistics(case: str, trained: Path, tmp_path: Path) -> None:
    make, expected = STATISTICS[case]
    make(tmp_path / "statistics.npz")
    options = {**TINY, "mode": "eval", "eval_fid": True, "eval_fid_samples": 4}
    assert expected in refusal(trained, **options, fid_statistics=tmp_path / "statistics.npz")


EVALUATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "nothing to do": ({}, "--eval_fid"),
    "folder outside": ({"eval_loss": True, "eval_folder": "../elsewhere"}, "--eval_folder"),
    "folder of ours": ({"eval_loss": True, "eval_folder": "checkpoints"}, "--eval_folder"),
    "density of images": ({"eval_density": True}, "--eval_density"),
    "no detector": ({"eval_fid": True, "fid_detector": "inception.pt"}, "inception.pt"),
}


@pytest.mark.parametrize("case", EVALUATIONS)
def test_evaluations(case: str, trained: Path) -> None:
    options, expected = EVALUATIONS[case]
    assert expected in refusal(trained, **TINY, mode="eval", **options)


def test_detector_that_is_no_torchscript(trained: Path, tmp_path: Path) -> None:
    text_file(tmp_path / "detector.pt")
    options = {**TINY, "mode": "eval", "eval_fid": True, "fid_detector": tmp_path / "detector.pt"}
    assert "detector.pt" in refusal(trained, **options)


@pytest.mark.slow
def test_corrupt_image_is_named(tmp_path: Path) -> None:
    for split in ("train", "test"):
        folder = tmp_path / "images" / split
        folder.mkdir(parents=True)
        for index in range(12):
            Image.fromarray(np.full((8, 8), index, dtype=np.uint8)).save(folder / f"{index:02}.png")
    broken = tmp_path / "images" / "train" / "07.png"
    broken.write_bytes(broken.read_bytes()[:40])
    options = {**TINY, "dataset": "folder", "data_location": tmp_path / "images", "n_train_iters": 50}
    assert "07.png" in refusal(tmp_path / "read_by_the_rank", **options)
    assert "07.png" in message(run(tmp_path / "read_by_workers", expect=2, **options, n_workers=2))
