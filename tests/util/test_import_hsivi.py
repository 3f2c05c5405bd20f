"""Published checkpoints of HSIVI: the recorded layout, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from models.ddpm_unet import DDPMUNet, DDPMUNetSettings
from models.log_gamma import LOG_GAMMA, add_log_gamma
from tests.util.hsivi_checkpoint import layout_checkpoint, layout_shapes
from trainers.import_checkpoint import main
from util.snapshot import inspect_snapshot, read_snapshot


def run(checkpoint: Any, folder: Path) -> tuple[int, Path]:
    source, target = folder / "in.pth", folder / "out.pth"
    torch.save(checkpoint, source)
    return main(["hsivi", str(source), str(target)]), target


def test_recorded_layout(tmp_path):
    checkpoint = layout_checkpoint()
    code, target = run(checkpoint, tmp_path)
    assert code == 0
    inspect_snapshot(target)
    state = read_snapshot(target)
    assert state["step"] == checkpoint["step"] - 1
    assert state["config"]["system"] == "hsivi"
    for ours, theirs in (("teacher", "target_model"), ("phi", "phinet"), ("f", "fnet")):
        prefix = f"module.{theirs}."
        names = [name.removeprefix(prefix) for name in checkpoint["whole_model"] if name.startswith(prefix)]
        assert list(state["networks"][ours]) == names
        for name in names:
            assert torch.equal(state["networks"][ours][name], checkpoint["whole_model"][prefix + name])
    for ours, theirs in (("phi", "ema_phinet"), ("f", "ema_fnet")):
        ema = state["emas"][ours]
        assert (ema["decay"], ema["n_updates"]) == (checkpoint[theirs]["decay"], checkpoint[theirs]["num_updates"])
        assert list(ema["shadow"]) == list(state["networks"][ours])
        for average, value in zip(ema["shadow"].values(), checkpoint[theirs]["shadow_params"], strict=True):
            assert torch.equal(average, value)


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module._orig_mod."])
def test_other_prefixes_and_a_wrapping_give_the_same(prefix, tmp_path):
    plain, other = layout_checkpoint(), layout_checkpoint()
    other["whole_model"] = {
        prefix + name.removeprefix("module."): tensor for name, tensor in other["whole_model"].items()
    }
    (tmp_path / "plain").mkdir()
    targets = [run(plain, tmp_path / "plain")[1], run({"state_dict": other}, tmp_path)[1]]
    assert len({inspect_snapshot(target).sha256 for target in targets}) == 1


def test_our_networks_have_the_recorded_names_in_order():
    recorded = {
        path.removeprefix("whole_model['module.phinet.").removesuffix("']"): shape
        for path, shape in layout_shapes().items()
        if path.startswith("whole_model['module.phinet.")
    }
    n_channels, image_channels = recorded["in_conv.weight"][:2]
    levels = {name.split(".")[1] for name in recorded if name.startswith("downsamples.")}
    blocks = {name.split(".")[2] for name in recorded if name.startswith("downsamples.level_0.")}
    gamma = recorded[LOG_GAMMA]
    network = DDPMUNet(
        DDPMUNetSettings(
            image_channels,
            gamma[-1],
            n_channels,
            ch_mult=(1,) * len(levels),
            n_resblocks=len(blocks),
            attn_resolutions=(),
        )
    )
    parameter = add_log_gamma(network, gamma)
    assert [(name, tuple(value.shape)) for name, value in network.state_dict().items()] == list(recorded.items())
    assert next(network.parameters()) is parameter


def drop(key: str):
    return lambda checkpoint: checkpoint["whole_model"].pop(key)


def set_value(key: str, value: torch.Tensor):
    return lambda checkpoint: checkpoint["whole_model"].update({key: value})


def drop_everywhere(name: str):
    def alter(checkpoint):
        for theirs in ("target_model", "phinet", "fnet"):
            del checkpoint["whole_model"][f"module.{theirs}.{name}"]

    return alter


DAMAGE = {
    "no whole network": (drop_everywhere("middle.1.norm.bias"), "target_model is not a whole network of ddpm-torch: m"),
    "no whole model": (lambda c: c.pop("whole_model"), "whole_model"),
    "no gamma": (drop(f"module.phinet.{LOG_GAMMA}"), LOG_GAMMA),
    "missing in f": (drop("module.fnet.in_conv.weight"), "fnet is not a network like target_model: missing in_conv"),
    "other shape": (set_value("module.phinet.in_conv.bias", torch.zeros(3)), "in_conv.bias has shape (3,)"),
    "left over": (set_value("module.gnet.in_conv.bias", torch.zeros(3)), "gnet.in_conv.bias"),
    "no prefix": (set_value("fnet.more", torch.zeros(3)), "'module.'"),
    "not finite": (set_value("module.fnet.in_conv.bias", torch.full((64,), torch.nan)), "not finite"),
    "too few averages": (lambda c: c["ema_phinet"]["shadow_params"].pop(), "ema_phinet shadow_params has"),
    "averages in another order": (lambda c: c["ema_fnet"]["shadow_params"].reverse(), "not in the order"),
    "no step": (lambda c: c.pop("step"), "step"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_what_does_not_fit_is_named_in_one_line(case, tmp_path, capsys):
    damage, expected = DAMAGE[case]
    checkpoint = layout_checkpoint()
    damage(checkpoint)
    code, target = run(checkpoint, tmp_path)
    message = capsys.readouterr().err
    assert code == 2
    assert expected in message
    assert message.count("\n") == 1
    assert not target.exists()
