"""The VDM U-Net: output, derivative, intermediates, and the parameter lists of the published models."""

import os
import re
from pathlib import Path

import pytest
import torch

from models.vdm_unet import VDMUNet, VDMUNetSettings, fourier_features
from tests.golden.idode_setup import assert_near, images
from tests.golden.vectors import load
from trainers.idode.importer import check_vdm_unet, from_flax
from util.named_shapes import shapes

FILES = ["vdm_unet_att0", "vdm_unet_att1", "vdm_unet_att1_scaled"]
TOLERANCE = {"f32": 5e-4, "f64": 1e-9}


def make_network(arrays) -> VDMUNet:
    settings = VDMUNetSettings(
        n_image_channels=arrays["in/z"].shape[-1],
        gamma_min=float(arrays["cfg/gamma_min"]),
        gamma_max=float(arrays["cfg/gamma_max"]),
        n_channels=int(arrays["cfg/sm_n_embd"]),
        n_resblocks=int(arrays["cfg/sm_n_layer"]),
        with_attention=bool(arrays["cfg/with_attention"]),
        with_fourier_features=bool(arrays["cfg/with_fourier_features"]),
    )
    network = VDMUNet(settings).eval()
    parameters = {
        key.removeprefix("params/"): torch.from_numpy(array)
        for key, array in arrays.items()
        if key.startswith("params/")
    }
    network.load_state_dict(dict(from_flax(path, tensor) for path, tensor in parameters.items()))
    return network


def outputs_of_modules(network: VDMUNet, *arguments: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The output for (z, gamma, conditioning), and that of every module on the way to it, by name."""
    found: dict[str, torch.Tensor] = {}
    # ``update`` returns nothing: what a forward hook returns takes the place of the output.
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: found.update({name: output}))
        for name, module in network.named_modules()
    ]
    y = network(*arguments)
    for hook in hooks:
        hook.remove()
    return y, found


@pytest.mark.parametrize("precision", ["f32", "f64"])
@pytest.mark.parametrize("name", FILES)
def test_everything(name, precision):
    arrays = load("idode", name)
    dtype, tolerance = {"f32": torch.float32, "f64": torch.float64}[precision], TOLERANCE[precision]
    network = make_network(arrays).to(dtype)
    z = images(arrays["in/z"]).to(dtype).requires_grad_()
    gamma, conditioning = (torch.from_numpy(arrays[f"in/{name}"]).to(dtype) for name in ("g", "conditioning"))
    y, modules = outputs_of_modules(network, z, gamma, conditioning)
    found = {f"mid/{name}": output for name, output in modules.items() if f"{precision}/mid/{name}" in arrays}
    if arrays["cfg/with_fourier_features"]:
        found["mid/fourier"] = fourier_features(z)
    (vjp,) = torch.autograd.grad((y * images(arrays["in/vjp_w"]).to(dtype)).sum(), z)
    scalar = torch.full_like(gamma, float(arrays["in/scalar_gamma"]))
    found |= {"out/y": y, "out/vjp_z": vjp, "out/y_scalar_gamma": network(z, scalar, conditioning)}
    assert len(found) > 8
    for key, value in found.items():
        assert_near(value, arrays[f"{precision}/{key}"], tolerance, key)


def test_gamma_acts_where_groups_have_several_channels():
    """The recorded networks have one channel in a group of GroupNorm, which takes away what gamma adds."""
    torch.manual_seed(0)
    settings = VDMUNetSettings(3, gamma_min=-13.3, gamma_max=5.0, n_channels=64, n_resblocks=1)
    network = VDMUNet(settings).double().eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    z, conditioning = torch.randn(3, 3, 8, 8, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    gamma = torch.tensor([-12.9, -4.15, 4.6], dtype=torch.float64)
    scalar = torch.full_like(gamma, -3.25)
    with torch.no_grad():
        y, modules = outputs_of_modules(network, z, gamma, conditioning)
        y_scalar = network(z, scalar, conditioning)
        each = [network(z[i : i + 1], gamma[i : i + 1], conditioning[:1]) for i in range(3)]
        again, modules_again = outputs_of_modules(network, z, scalar, conditioning)
    torch.testing.assert_close(torch.cat(each), y, rtol=1e-12, atol=1e-12)
    assert torch.equal(again, y_scalar)
    assert not torch.equal(modules_again["dense1"], modules["dense1"])
    assert (y_scalar - y).abs().amax((1, 2, 3)).min() > 1e-3


@pytest.mark.parametrize("name", ["cifar10", "imagenet32", "cifar10_aug"])
def test_published_names_and_shapes(name):
    folder = Path(os.environ.get("GOLDEN_DIR") or Path(__file__).parent / "vectors")
    header, *lines = (folder / "idode" / f"shapes_vdm_{name}.txt").read_text().splitlines()
    expected = {}
    for line in lines:
        if not line.startswith("#"):
            path, shape = line.split("\t")
            expected[path.removeprefix("score_model/")] = tuple(map(int, re.findall(r"\d+", shape)))
    n_tensors, n_parameters = map(int, re.search(r"(\d+) tensors, (\d+) parameters", header).groups())
    settings = VDMUNetSettings(
        n_image_channels=expected["conv_out/bias"][0],
        gamma_min=-13.3,
        gamma_max=5.0,
        n_channels=expected["conv_in/bias"][0],
        n_resblocks=sum(bool(re.fullmatch(r"down\.block_\d+/conv1/bias", path)) for path in expected),
        with_attention="down.attn_0/q/bias" in expected,
        with_fourier_features=expected["conv_in/kernel"][2] != expected["conv_out/bias"][0],
    )
    with torch.device("meta"):
        network = VDMUNet(settings)
        published = dict(from_flax(path, torch.empty(shape)) for path, shape in expected.items())
    ours = shapes(dict(network.named_parameters()))
    assert ours == shapes(published)
    assert len(ours) == n_tensors
    assert sum(parameter.numel() for parameter in network.parameters()) == n_parameters
    read = {name: torch.empty(shape) for name, shape in reversed(ours.items())}
    check_vdm_unet(read, "here")
    assert list(shapes(read).items()) == list(ours.items())
