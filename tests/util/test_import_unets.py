"""Checkpoints in the layouts of ddpm-torch and improved-diffusion, whole and damaged."""

import argparse
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from models.ddpm_unet import DDPMUNet, DDPMUNetSettings
from models.improved_unet import ImprovedUNet, ImprovedUNetSettings
from trainers.import_checkpoint import main
from trainers.unet_checkpoint import ddpm_unet_settings, improved_unet_settings
from util.ema import ExponentialMovingAverage
from util.named_shapes import shapes
from util.snapshot import read_snapshot

SMALL = {"image_channels": 1, "image_size": 8, "n_channels": 8, "n_groups": 4, "n_resblocks": 1}
DDPM = DDPMUNet(DDPMUNetSettings(**SMALL, ch_mult=(1, 2), attn_resolutions=(4,)))
IMPROVED = ImprovedUNet(ImprovedUNetSettings(**SMALL, ch_mult=(1, 2), attn_resolutions=(8,), learn_sigma=True))


def weights(network, factor=1.0):
    generator = torch.Generator().manual_seed(0)
    return {
        name: factor * torch.randn(tensor.shape, generator=generator) for name, tensor in network.state_dict().items()
    }


def prefixed(tensors):
    return {f"module.{name}": tensor for name, tensor in tensors.items()}


def nested(network, wrap=dict):
    """As ddpm-torch's trainer writes it."""
    return {
        "model": wrap(weights(network)),
        "optimizer": {"state": {}, "param_groups": []},
        "ema": {"decay": 0.9999, "shadow": wrap(weights(network, 2.0)), "num_updates": 17},
        "scheduler": {},
        "epoch": 3,
    }


def run(program, checkpoint, folder: Path):
    source, target = folder / "in.pth", folder / "out.pth"
    torch.save(checkpoint, source)
    return main([program, str(source), str(target)]), target


@pytest.mark.parametrize(("program", "network"), [("ddpm_torch", DDPM), ("improved_diffusion", IMPROVED)])
@pytest.mark.parametrize(
    "layout",
    [
        "flat", "flat prefixed", "flat compiled", "flat wrapped", "nested", "nested prefixed", "nested wrapped",
        "model only", "ema only",
    ],
)  # fmt: skip
def test_every_layout_is_read_and_averages_are_preferred(program, network, layout, tmp_path):
    file = {
        "flat": weights(network),
        "flat prefixed": prefixed(weights(network)),
        "flat compiled": {f"module._orig_mod.{name}": tensor for name, tensor in weights(network).items()},
        "flat wrapped": {"state_dict": prefixed(weights(network)), "args": argparse.Namespace(steps=np.int64(3))},
        "nested": nested(network),
        "nested wrapped": {"checkpoint": nested(network)},
        "nested prefixed": nested(network, prefixed),
        "model only": {"model": weights(network), "epoch": 3},
        "ema only": {"ema": nested(network)["ema"]},
    }[layout]
    code, target = run(program, file, tmp_path)
    assert code == 0
    state = read_snapshot(target)
    assert state["config"] == {"imported_from": "in.pth", "system": "ddpm"}
    with_average = "nested" in layout or layout == "ema only"
    assert state["step"] == (17 if with_average else 0)
    loaded = type(network)(network.settings)
    loaded.load_state_dict(state["networks"]["noise"])
    average = ExponentialMovingAverage(loaded.named_parameters(), 0.5)
    average.load_state_dict(state["emas"]["noise"])
    first, expected = next(iter(weights(network).items()))
    own = 2.0 if layout == "ema only" else 1.0
    assert torch.equal(loaded.state_dict()[first], own * expected)
    with average.average_weights():
        assert torch.equal(loaded.state_dict()[first], (2.0 if with_average else 1.0) * expected)


def without(checkpoint, name):
    return {key: tensor for key, tensor in checkpoint.items() if key != name}


WHOLE = weights(DDPM)
CASES = {
    "missing": (without(WHOLE, "middle.1.norm.bias"), "missing middle.1.norm.bias"),
    "first missing": (without(WHOLE, "in_conv.weight"), "no in_conv.weight"),
    "left over": ({**WHOLE, "betas": torch.zeros(3)}, "unexpected betas"),
    "other shape": (
        {**WHOLE, "middle.0.fc.weight": torch.zeros(16, 31)},
        "middle.0.fc.weight has shape (16, 31) instead of (16, 32)",
    ),
    "attention on one path only": (
        {name: tensor for name, tensor in WHOLE.items() if not name.startswith("upsamples.level_1.0.1.")},
        "missing upsamples.level_1.0.1.norm.weight",
    ),
    "not finite": ({**WHOLE, "embed.0.bias": torch.full((32,), torch.nan)}, "embed.0.bias: holds values"),
    "not a tensor": ({**WHOLE, "embed.0.bias": 3}, "entry 'embed.0.bias' is a int"),
    "not a dictionary": ([1, 2], "a list, not a state_dict of ddpm-torch"),
    "empty": ({}, "no in_conv.weight"),
    "the other program": (
        weights(IMPROVED),
        "a network of improved-diffusion, not of ddpm-torch; import it with impro",
    ),
    "HSIVI": ({"whole_model": {}}, "import it with hsivi"),
    "average of another network": (
        {
            **nested(DDPM),
            "ema": {"decay": 0.9, "num_updates": 1, "shadow": {"in_conv.weight": torch.zeros(8, 1, 3, 3)}},
        },
        "ema shadow has no downsamples.level_0",
    ),
    "average without weights": ({**nested(DDPM), "ema": {"decay": 0.9}}, "ema: no entry 'shadow'"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_fit_is_one_line_that_names_it(case, tmp_path, capsys):
    checkpoint, message = CASES[case]
    code, target = run("ddpm_torch", checkpoint, tmp_path)
    assert code == 2
    assert not target.exists()
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert "in.pth" in error


def test_improved_diffusion_that_does_not_fit(tmp_path, capsys):
    code, _ = run("improved_diffusion", without(weights(IMPROVED), "output_blocks.1.1.conv.bias"), tmp_path)
    assert code == 2
    assert "missing output_blocks.1.1.conv.bias" in capsys.readouterr().err


def expected_shapes(found):
    """Of the network that the importer takes these shapes for."""
    with torch.device("meta"):
        if "time_embed.0.weight" in found:
            return shapes(ImprovedUNet(improved_unet_settings(found)).state_dict())
        return shapes(DDPMUNet(ddpm_unet_settings(found)).state_dict())


@pytest.mark.parametrize("name", ["cifar10", "celeba64", "celeba64_ddpm_torch_config", "imagenet64"])
def test_published_networks_are_whole(name):
    folder = Path(os.environ.get("GOLDEN_DIR") or Path(__file__).parents[1] / "golden" / "vectors") / "hsivi"
    lines = [line.split("\t") for line in (folder / f"keys_{name}.txt").read_text().splitlines()[2:]]
    found = {key: tuple(map(int, shape.split("x"))) for key, shape in lines}
    assert expected_shapes(found) == found


@pytest.mark.parametrize("attention", [(), (8,), (8, 2), (2,)])
@pytest.mark.parametrize("levels", [(1,), (1, 2), (1, 1, 3)])
def test_networks_of_every_form_are_whole(levels, attention):
    resolutions = tuple(size for size in attention if size >= 8 >> (len(levels) - 1))
    for scale_shift in (False, True):
        improved = ImprovedUNet(
            ImprovedUNetSettings(
                **SMALL, ch_mult=levels, attn_resolutions=resolutions, use_scale_shift_norm=scale_shift
            )
        )
        assert expected_shapes(shapes(improved.state_dict())) == shapes(improved.state_dict())
    ddpm = DDPMUNet(DDPMUNetSettings(**SMALL, ch_mult=levels, attn_resolutions=resolutions))
    assert expected_shapes(shapes(ddpm.state_dict())) == shapes(ddpm.state_dict())
