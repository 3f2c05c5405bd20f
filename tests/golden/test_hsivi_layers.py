"""Conditional layers and whole sampling trajectories, with the recorded networks and the recorded noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from diffusion.discrete.hsivi import apply_layer, log_gamma_shape, sampling_layers
from models.ddpm_unet import DDPMUNet, DDPMUNetSettings
from models.improved_unet import ImprovedUNet, ImprovedUNetSettings
from models.log_gamma import add_log_gamma
from tests.golden.hsivi_setup import Arrays, close, recorded_hierarchy
from tests.golden.vectors import load
from util.images import to_uint8

PREFIX = "state_dict/phinet."
PHINET = load("hsivi", "phinet")
VARIANTS = sorted({key.split("/")[0] for key in PHINET if key.startswith("image-")})
SAMPLERS = ("sampler", "sampler_openai")


def common_settings(arrays: Arrays) -> dict:
    weight = next(arrays[f"{PREFIX}{name}"] for name in ("in_conv.weight", "input_blocks.0.0.weight")
                  if f"{PREFIX}{name}" in arrays)  # fmt: skip
    return {
        "image_channels": weight.shape[1],
        "image_size": int(arrays["config/image_size"]),
        "n_resblocks": int(arrays["config/num_res_blocks"]),
    }


def make_network(arrays: Arrays) -> nn.Module:
    """The network of a file, with its weights but for log_scaled_gamma."""
    settings = common_settings(arrays)
    size = settings["image_size"]
    network: nn.Module
    if "config/hid_channels" in arrays:
        network = DDPMUNet(DDPMUNetSettings(
            **settings,
            n_channels=int(arrays["config/hid_channels"]),
            ch_mult=tuple(arrays["config/ch_multipliers"].tolist()),
            attn_resolutions=tuple(size >> level for level, on in enumerate(arrays["config/apply_attn"]) if on),
        ))  # fmt: skip
    else:
        network = ImprovedUNet(ImprovedUNetSettings(
            **settings,
            n_channels=int(arrays["config/model_channels"]),
            ch_mult=tuple(arrays["config/channel_mult"].tolist()),
            attn_resolutions=tuple(size // int(factor) for factor in arrays["config/attention_resolutions"]),
            num_heads=int(arrays["config/num_heads"]),
            learn_sigma=len(arrays[f"{PREFIX}out.2.bias"]) == 2 * settings["image_channels"],
        ))  # fmt: skip
    weights = {key.removeprefix(PREFIX): value for key, value in arrays.items() if key.startswith(PREFIX)}
    weights.pop("log_scaled_gamma", None)
    network.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return network.eval()


@pytest.mark.parametrize("variant", VARIANTS)
def test_layer(variant):
    arrays = {key.removeprefix(f"{variant}/"): value for key, value in PHINET.items() if key.startswith(variant)}
    n_points = int(PHINET["config/n_discrete_steps"])
    hierarchy = recorded_hierarchy(PHINET, "config/", float(PHINET["config/eta"]), n_points, torch.float32)
    network = make_network(PHINET)
    state, index = torch.from_numpy(arrays["in/x_t_plus_1"]), torch.from_numpy(arrays["in/gamma_index"])
    recorded_gamma = arrays["state_dict/phinet.log_scaled_gamma"]
    use_image, use_layers = (bool(arrays[f"{name}_use"]) for name in ("image_gamma", "independent_log_gamma"))
    shape = log_gamma_shape(hierarchy.n_layers, tuple(state.shape[1:]), use_image, use_layers)
    log_gamma = add_log_gamma(network, shape)
    assert next(iter(network.state_dict())) == "log_scaled_gamma"
    assert next(network.parameters()) is log_gamma
    assert log_gamma.shape == recorded_gamma.shape
    assert not log_gamma.any()
    network.load_state_dict({**network.state_dict(), "log_scaled_gamma": torch.from_numpy(recorded_gamma)})

    np.testing.assert_array_equal(hierarchy.labels[index + 1], arrays["in/time_cond"])
    close(hierarchy.sigma[index], arrays["in/sigma_t"].ravel(), 1e-6)
    close(hierarchy.sigma[index + 1], arrays["in/sigma_t_plus_1"].ravel(), 1e-6)
    for mode in ("train", "eval"):
        noise = torch.from_numpy(arrays[f"{mode}/noise_drawn"])
        if mode == "eval":
            noise = noise * (index > 0)[:, None, None, None]
        with torch.no_grad():
            transition = apply_layer(hierarchy, network, log_gamma, state, index, noise)
        close(transition.prediction, arrays["out/epsilon_phi"], 2e-4)
        close(transition.mean, arrays["out/mean"], 2e-4)
        np.testing.assert_array_equal(transition.noise, arrays[f"{mode}/eps"])
        close(transition.gamma, arrays[f"{mode}/gamma"], 2e-5)
        close(transition.state, arrays[f"{mode}/x_t"], 2e-4)
        # With the recorded prediction the layer's own arithmetic shows.
        recorded = torch.from_numpy(arrays["out/epsilon_phi"])
        with torch.no_grad():
            exact = apply_layer(hierarchy, lambda x, t: recorded, log_gamma, state, index, noise)  # noqa: B023
        close(exact.mean, arrays["out/mean"], 2e-5)
        close(exact.state, arrays[f"{mode}/x_t"], 2e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampling(name):
    arrays = load("hsivi", name)
    n_points = int(arrays["config/n_discrete_steps"])
    hierarchy = recorded_hierarchy(arrays, "config/", float(arrays["config/eta"]), n_points, torch.float32)
    network = make_network(arrays)
    log_gamma = torch.from_numpy(arrays[f"{PREFIX}log_scaled_gamma"])
    noise, labels = iter(torch.from_numpy(arrays["in/noise_drawn"])), []

    def counted(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        labels.append(t)
        return network(x, t)

    start = torch.from_numpy(arrays["in/prior"])
    transitions = list(sampling_layers(hierarchy, counted, log_gamma, start, lambda: next(noise)))
    assert len(transitions) == hierarchy.n_layers == len(labels)
    np.testing.assert_array_equal(torch.stack(labels), arrays["traj/time_cond"])
    close(torch.stack([transition.prediction for transition in transitions]), arrays["traj/epsilon_phi"], 5e-5)
    close(torch.stack([transition.noise for transition in transitions]), arrays["traj/eps"], 0.0)
    close(torch.stack([start, *(transition.state for transition in transitions)]), arrays["traj/x"], 1e-5)
    indices = torch.from_numpy(arrays["traj/gamma_index"])
    close(hierarchy.sigma[indices], arrays["traj/sigma_t"], 1e-6)
    close(hierarchy.sigma[indices + 1], arrays["traj/sigma_t_plus_1"], 1e-6)
    result = transitions[-1].state
    close(result, arrays["out/x"], 1e-5)
    close((result + 1) / 2, arrays["out/unit"], 1e-5)
    # A level next to a whole number may fall either way, by the round-off of the network.
    levels = to_uint8((result + 1) / 2, truncate=True).permute(0, 2, 3, 1).int()
    exact = to_uint8((torch.from_numpy(arrays["out/x"]) + 1) / 2, truncate=True).permute(0, 2, 3, 1)
    np.testing.assert_array_equal(exact, arrays["out/uint8"])
    assert (levels - torch.from_numpy(arrays["out/uint8"])).abs().max() <= 1


@pytest.mark.parametrize("name", SAMPLERS)
def test_eight_bits(name):
    arrays = load("hsivi", name)
    levels = to_uint8((torch.from_numpy(arrays["quantise/x"]) + 1) / 2, truncate=True)
    np.testing.assert_array_equal(levels, arrays["quantise/uint8"])
