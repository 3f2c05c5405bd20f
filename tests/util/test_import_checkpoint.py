import argparse
import subprocess
import sys
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.ncsnpp import NCSNpp, NCSNppSettings
from trainers.import_checkpoint import main
from util.ema import ExponentialMovingAverage
from util.snapshot import inspect_snapshot, read_snapshot

FOURIER = NCSNppSettings(
    in_channels=6, out_channels=3, image_size=8, n_channels=8, ch_mult=(1, 2), n_resblocks=1, attn_resolutions=(4,)
)
POSITIONAL = replace(FOURIER, attn_resolutions=(), use_fir=False, progressive_input="none", embedding_type="positional")


def published(settings: NCSNppSettings) -> dict:
    """A checkpoint in the layout of the published program, with averages that differ from the weights."""
    torch.manual_seed(0)
    network = NCSNpp(settings)
    generator = torch.Generator().manual_seed(1)
    return {
        "optimizer": torch.optim.Adam(network.parameters()).state_dict(),
        "model": OrderedDict((f"module.{name}", tensor) for name, tensor in network.state_dict().items()),
        "ema": {
            "decay": 0.9999,
            "num_updates": 41,
            "shadow_params": [
                parameter.detach() + torch.randn(parameter.shape, generator=generator)
                for parameter in network.parameters()
                if parameter.requires_grad
            ],
        },
        "step": 42,
    }


def run(checkpoint, folder: Path) -> tuple[int, Path]:
    source, target = folder / "in.pth", folder / "out.pth"
    torch.save(checkpoint, source)
    return main(["cld", str(source), str(target)]), target


@pytest.mark.parametrize("settings", [FOURIER, POSITIONAL], ids=["fourier", "positional"])
def test_converted_checkpoint_loads_into_network_and_average(settings, tmp_path):
    checkpoint = published(settings)
    code, target = run(checkpoint, tmp_path)
    assert code == 0
    assert inspect_snapshot(target).step == 42
    state = read_snapshot(target)
    assert state["step"] == 42
    assert state["config"] == {"imported_from": "in.pth", "system": "cld"}
    assert state["optimizers"] == {}
    assert state["scaler"] == {}
    assert {"python", "torch", "numpy"} <= set(state["versions"])

    network = NCSNpp(settings)
    ema = ExponentialMovingAverage(network.named_parameters(), 0.5)
    network.load_state_dict(state["networks"]["score"])
    ema.load_state_dict(state["emas"]["score"])
    assert ema.n_updates == 41
    assert ema.decay == 0.9999
    averages = iter(checkpoint["ema"]["shadow_params"])
    with ema.average_weights():
        for name, parameter in network.named_parameters():
            expected = next(averages) if parameter.requires_grad else checkpoint["model"][f"module.{name}"]
            assert torch.equal(parameter, expected), name
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, checkpoint["model"][f"module.{name}"]), name


def renamed(prefix):
    return lambda checkpoint: {
        **checkpoint,
        "model": {prefix + name.removeprefix("module."): tensor for name, tensor in checkpoint["model"].items()},
    }


LAYOUTS = {
    "no prefix": renamed(""),
    "compiled": renamed("_orig_mod."),
    "compiled, then parallel": renamed("module._orig_mod."),
    "parallel, then compiled": renamed("_orig_mod.module."),
    "wrapped": lambda checkpoint: {"state_dict": checkpoint, "epoch": 3},
    "another key": lambda checkpoint: {
        "state_dict" if key == "model" else key: value for key, value in checkpoint.items()
    },
    "wrapped inside": lambda checkpoint: {**checkpoint, "model": {"state_dict": checkpoint["model"]}},
    "numbers of numpy": lambda checkpoint: {**checkpoint, "step": np.int64(checkpoint["step"])},
    "arguments of the program": lambda checkpoint: {**checkpoint, "args": argparse.Namespace(lr=np.float32(1e-3))},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_layouts_give_the_same(layout, tmp_path):
    (tmp_path / "plain").mkdir()
    _, plain = run(published(FOURIER), tmp_path / "plain")
    code, target = run(LAYOUTS[layout](published(FOURIER)), tmp_path)
    assert code == 0
    assert inspect_snapshot(target).sha256 == inspect_snapshot(plain).sha256


def test_views_do_not_take_their_base_along(tmp_path):
    checkpoint = published(FOURIER)
    base = torch.zeros(1_000_000)
    first = checkpoint["ema"]["shadow_params"][0]
    base[: first.numel()] = first.flatten()
    checkpoint["ema"]["shadow_params"][0] = base[: first.numel()].view(first.shape)
    code, target = run(checkpoint, tmp_path)
    assert code == 0
    assert target.stat().st_size < 2_000_000


def without(key):
    def alter(checkpoint):
        del checkpoint[key]

    return alter


def without_parameter(name):
    def alter(checkpoint):
        del checkpoint["model"][f"module.{name}"]

    return alter


def with_parameter(name, tensor):
    def alter(checkpoint):
        checkpoint["model"][name] = tensor

    return alter


def half_prefixed(checkpoint):
    checkpoint["model"] = {
        name.removeprefix("module.") if place % 2 else name: tensor
        for place, (name, tensor) in enumerate(checkpoint["model"].items())
    }


def short_average(checkpoint):
    checkpoint["ema"]["shadow_params"].pop()


def long_average(checkpoint):
    checkpoint["ema"]["shadow_params"].insert(0, torch.zeros(8))


def swapped_average(checkpoint):
    averages = checkpoint["ema"]["shadow_params"]
    averages[0], averages[1] = averages[1], averages[0]


def named_average(checkpoint):
    checkpoint["ema"]["shadow_params"] = dict(enumerate(checkpoint["ema"]["shadow_params"]))


def not_a_number(checkpoint):
    checkpoint["ema"]["shadow_params"][3][0] = float("nan")


def text_step(checkpoint):
    checkpoint["step"] = "42"


def without_module(checkpoint):
    for name in [name for name in checkpoint["model"] if name.startswith("module.all_modules.5.")]:
        del checkpoint["model"][name]


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (without("ema"), "no entry 'ema'"),
        (without("model"), "no entry 'model'"),
        (without("step"), "no entry 'step'"),
        (text_step, "entry 'step' is a str, expected int"),
        (half_prefixed, "'all_modules.1.weight' lacks the prefix 'module.'"),
        (without_parameter("all_modules.4.Conv_0.bias"), "missing all_modules.4.Conv_0.bias"),
        (without_parameter("all_modules.7.Conv_2.weight"), "missing all_modules.7.Conv_2.weight"),
        (without_parameter("all_modules.0.W"), "no entry all_modules.0.*"),
        (without_module, "no entry all_modules.5.*"),
        (with_parameter("module.all_modules.4.extra", torch.zeros(1)), "unexpected all_modules.4.extra"),
        (with_parameter("module.sigmas", torch.zeros(1)), "unexpected model entry 'sigmas'"),
        (with_parameter("module.all_modules.4.Conv_0.bias", torch.zeros(9)), "Conv_0.bias has shape (9,)"),
        (
            with_parameter("module.all_modules.4.Conv_0.bias", "zeros"),
            "Conv_0.bias: not a floating-point tensor",
        ),
        (short_average, "shadow_params has"),
        (long_average, "shadow_params has"),
        (swapped_average, "all_modules.1.weight has shape (32,) instead of (32, 16)"),
        (named_average, "'shadow_params' is a dict, expected list"),
        (not_a_number, "not finite"),
    ],
)
def test_anything_amiss_is_named_in_one_line(alter, message, tmp_path, capsys):
    checkpoint = published(FOURIER)
    alter(checkpoint)
    code, target = run(checkpoint, tmp_path)
    error = capsys.readouterr().err
    assert code == 2
    assert message in error
    assert error.count("\n") == 1
    assert not target.exists()


class Foreign:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def test_code_in_a_checkpoint_is_not_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _ = run({**published(FOURIER), "extra": Foreign()}, tmp_path)
    error = capsys.readouterr().err
    assert code == 2
    assert "more than tensors and plain containers" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut short"])
def test_damaged_file(content, tmp_path, capsys):
    (tmp_path / "in.pth").write_bytes(content)
    assert main(["cld", str(tmp_path / "in.pth"), str(tmp_path / "out.pth")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_truncated_checkpoint(tmp_path, capsys):
    torch.save(published(FOURIER), tmp_path / "in.pth")
    whole = (tmp_path / "in.pth").read_bytes()
    (tmp_path / "in.pth").write_bytes(whole[: len(whole) // 2])
    assert main(["cld", str(tmp_path / "in.pth"), str(tmp_path / "out.pth")]) == 2
    assert "not a readable PyTorch checkpoint" in capsys.readouterr().err


def test_paths(tmp_path, capsys):
    torch.save(published(FOURIER), tmp_path / "in.pth")
    for source, target, message in (
        ("absent.pth", "out.pth", "no such file"),
        ("in.pth", "in.pth", "the checkpoint to convert itself"),
        ("in.pth", "absent/out.pth", "a folder that exists"),
        ("in.pth", ".", "cannot be written"),
    ):
        assert main(["cld", str(tmp_path / source), str(tmp_path / target)]) == 2
        assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.pth"]


def test_command_line():
    command = [sys.executable, "-m", "trainers.import_checkpoint"]
    finished = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    assert "IN [IN ...] OUT" in " ".join(finished.stdout.split())
    finished = subprocess.run([*command, "cld", "absent.pth", "out.pth"], capture_output=True, text=True)
    assert finished.returncode == 2
    assert finished.stderr == "error: absent.pth: no such file; give the checkpoint to convert\n"
