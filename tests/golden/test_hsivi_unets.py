"""The U-Nets of ddpm-torch and improved-diffusion: every part, both precisions, names and shapes."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models.ddpm_unet import DDPMUNet, DDPMUNetSettings
from models.improved_unet import ImprovedUNet, ImprovedUNetSettings
from tests.golden import vectors

TOLERANCE = 2e-4
FLOAT64_TOLERANCE = 1e-9
PREFIX = "state_dict/"

DDPM_FILES = ["unet_ddpm", "unet_ddpm_lively", "unet_ddpm_2blocks"]
IMPROVED_FILES = ["unet_openai", "unet_openai_lively"]


def assert_near(actual: torch.Tensor, expected: np.ndarray, tolerance: float = TOLERANCE) -> None:
    """Relative to the largest entry."""
    assert actual.shape == expected.shape
    difference = np.abs(actual.detach().double().numpy() - expected).max()
    assert difference <= tolerance * np.abs(expected).max()


def ddpm_settings(recorded, group_norm_eps: float) -> DDPMUNetSettings:
    image_size = int(recorded["config/image_size"])
    return DDPMUNetSettings(
        image_channels=recorded["in/x"].shape[1],
        image_size=image_size,
        n_channels=int(recorded["config/hid_channels"]),
        ch_mult=tuple(recorded["config/ch_multipliers"].tolist()),
        n_resblocks=int(recorded["config/num_res_blocks"]),
        attn_resolutions=tuple(image_size >> level for level, on in enumerate(recorded["config/apply_attn"]) if on),
        n_groups=int(recorded["config/num_groups"]),
        group_norm_eps=group_norm_eps,
    )


def improved_settings(recorded) -> ImprovedUNetSettings:
    image_size, channels = int(recorded["config/image_size"]), recorded["in/x"].shape[1]
    return ImprovedUNetSettings(
        image_channels=channels,
        image_size=image_size,
        n_channels=int(recorded["config/model_channels"]),
        ch_mult=tuple(recorded["config/channel_mult"].tolist()),
        n_resblocks=int(recorded["config/num_res_blocks"]),
        attn_resolutions=tuple(image_size // factor for factor in recorded["config/attention_resolutions"].tolist()),
        n_groups=int(recorded["config/num_groups"]),
        num_heads=int(recorded["config/num_heads"]),
        learn_sigma=int(recorded["config/out_channels"]) == 2 * channels,
        use_scale_shift_norm=bool(recorded["config/use_scale_shift_norm"]),
    )


def make_network(name: str, recorded, group_norm_eps: float = 1e-5) -> nn.Module:
    if name in DDPM_FILES:
        network: nn.Module = DDPMUNet(ddpm_settings(recorded, group_norm_eps))
    else:
        network = ImprovedUNet(improved_settings(recorded))
    weights = {key.removeprefix(PREFIX): torch.from_numpy(recorded[key]) for key in recorded if key.startswith(PREFIX)}
    assert list(network.state_dict()) == list(weights)
    network.load_state_dict(weights)
    return network.eval()


def inputs(recorded, t: str = "in/t") -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(recorded["in/x"]), torch.from_numpy(recorded[t])


@pytest.mark.parametrize("name", DDPM_FILES + IMPROVED_FILES)
def test_output_and_intermediates(name):
    recorded = vectors.load("hsivi", name)
    network = make_network(name, recorded)
    modules = {
        "aux/sinusoidal": network.positions,
        "aux/t_emb": network.embed if name in DDPM_FILES else network.time_embed,
        "aux/in_conv": network.in_conv if name in DDPM_FILES else network.input_blocks[0],
        "aux/middle": network.middle[-1] if name in DDPM_FILES else network.middle_block,
    }
    outputs = {}
    for key, module in modules.items():
        module.register_forward_hook(lambda _module, _inputs, output, key=key: outputs.update({key: output}))
    with torch.no_grad():
        y = network(*inputs(recorded))
    assert_near(y, recorded["out/y"])
    for key, output in outputs.items():
        assert_near(output, recorded[key])
    assert set(outputs) == set(modules)


@pytest.mark.parametrize("name", DDPM_FILES + IMPROVED_FILES)
def test_float64(name):
    recorded = vectors.load("hsivi", name)
    network = make_network(name, recorded).double()
    # Other processors round sines and cosines in float32 differently; these are the reference's.
    network.positions.register_forward_hook(lambda *_: torch.from_numpy(recorded["aux/sinusoidal"]))
    x, labels = inputs(recorded)
    with torch.no_grad():
        y = network(x.double(), labels)
    assert y.dtype == torch.float64
    assert_near(y, recorded["out/y_float64"], FLOAT64_TOLERANCE)


@pytest.mark.parametrize("name", DDPM_FILES)
def test_group_norm_eps_of_newer_ddpm_torch(name):
    recorded = vectors.load("hsivi", name)
    with torch.no_grad():
        y = make_network(name, recorded, group_norm_eps=1e-6)(*inputs(recorded))
    assert_near(y, recorded["out/y_groupnorm_eps_1e-6"])


@pytest.mark.parametrize("name", IMPROVED_FILES)
def test_all_outputs_and_fractional_labels(name):
    recorded = vectors.load("hsivi", name)
    network = make_network(name, recorded)
    outputs = []
    network.out.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    with torch.no_grad():
        network(*inputs(recorded))
        network(*inputs(recorded, "in/t_fractional"))
    assert_near(outputs[0], recorded["out/y_full"])
    assert_near(outputs[1], recorded["out/y_full_fractional_t"])


def full_size(name: str, heading: str) -> nn.Module:
    """The network that a list of names describes in its first line."""

    def number(key: str) -> int:
        return int(re.search(rf"{key}=(\d+)", heading)[1])

    def numbers(text: str) -> tuple[int, ...]:
        return tuple(map(int, re.search(rf"{text}\[([\d,]+)\]", heading)[1].split(",")))

    image_size = int(re.search(r"(\d+)", name)[1]) if "64" in name else 32
    with torch.device("meta"):
        if "hid_channels" in heading:
            attended = re.search(r"apply_attn=\[([FT,]+)\]", heading)[1].split(",")
            return DDPMUNet(
                DDPMUNetSettings(
                    image_channels=3,
                    image_size=image_size,
                    n_channels=number("hid_channels"),
                    ch_mult=numbers("ch_multipliers="),
                    n_resblocks=number("num_res_blocks"),
                    attn_resolutions=tuple(image_size >> level for level, on in enumerate(attended) if on == "T"),
                )
            )
        return ImprovedUNet(
            ImprovedUNetSettings(
                image_channels=3,
                image_size=image_size,
                n_channels=number("model_channels"),
                ch_mult=numbers("channel_mult="),
                n_resblocks=number("num_res_blocks"),
                attn_resolutions=tuple(image_size // factor for factor in numbers("downsampling factors ")),
                num_heads=number("num_heads"),
                learn_sigma=True,
            )
        )


@pytest.mark.parametrize("name", ["cifar10", "celeba64", "celeba64_ddpm_torch_config", "imagenet64"])
def test_published_names_order_and_shapes(name):
    folder = Path(os.environ.get("GOLDEN_DIR") or Path(__file__).parent / "vectors")
    lines = (folder / "hsivi" / f"keys_{name}.txt").read_text().splitlines()
    heading, counts = lines[0], lines[1]
    network = full_size(name, heading)
    ours = [f"{key}\t{'x'.join(map(str, tensor.shape))}" for key, tensor in network.state_dict().items()]
    assert ours == lines[2:]
    assert [key for key, _ in network.named_parameters()] == list(network.state_dict())
    n_tensors, n_parameters = map(int, re.search(r"(\d+) tensors, (\d+) parameters", counts).groups())
    assert len(ours) == n_tensors
    assert sum(parameter.numel() for parameter in network.parameters()) == n_parameters
