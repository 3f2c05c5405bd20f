"""Score networks as the options describe them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from models.ddpm_unet import DDPMUNet, DDPMUNetSettings
from models.improved_unet import ImprovedUNet, ImprovedUNetSettings
from models.mlp import MLP
from models.mlp_settings import MLPSettings
from models.ncsnpp import NCSNpp, NCSNppSettings
from trainers.options import NetworkChoice
from util.config import Config
from util.data.options import DataOptions
from util.errors import UsageError
from util.noise import derive_seed
from util.run_options import RunOptions


def score_network_settings(config: Config, in_channels: int, out_channels: int) -> NCSNppSettings | MLPSettings:
    """Settings of an NCSN++ for images, an MLP for points; making them checks them.

    Raises:
        UsageError: a network that does not take the data, or settings that cannot work together.
    """
    data, network = config[DataOptions], config[NetworkChoice].name
    if data.is_image == (network == "mlp"):
        wanted, other = ("images", "ncsnpp") if data.is_image else ("points", "mlp")
        raise UsageError(f"--name {network} does not take {wanted}; use --name {other}")
    if data.is_image:
        return config.make(
            NCSNppSettings, in_channels=in_channels, out_channels=out_channels, image_size=data.image_size
        )
    return config.make(MLPSettings, in_features=in_channels, out_features=out_channels)


def seeded(make: Callable[[], nn.Module], seed: int, device: torch.device, is_image: bool = True) -> nn.Module:
    """A network whose initial weights are a function of the seed alone, on its device.

    Args:
        make: the constructor; torch's default generator is seeded around it.
        seed: ``--seed``.
        device: where the network goes.
        is_image: on a GPU, put convolution weights channels last.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "initial weights"))
        network = make().to(device)
    if is_image and device.type == "cuda":
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def make_score_network(config: Config, in_channels: int, out_channels: int, device: torch.device) -> nn.Module:
    """An NCSN++ for images, an MLP for points.

    Args:
        config: checked.
        in_channels: channels, or features of points, that go in.
        out_channels: those that come out.
        device: where the network goes.
    """
    settings = score_network_settings(config, in_channels, out_channels)

    def make() -> nn.Module:
        if isinstance(settings, NCSNppSettings):
            return NCSNpp(settings)
        return MLP(settings.in_features, settings.out_features, settings.n_hidden, settings.n_layers)

    return seeded(make, config[RunOptions].seed, device, config[DataOptions].is_image)


def noise_network_settings(config: Config) -> DDPMUNetSettings | ImprovedUNetSettings:
    """Settings of a network that predicts noise from discrete labels; making them checks them.

    Raises:
        UsageError: settings that cannot work together.
    """
    data = config[DataOptions]
    shape: dict[str, Any] = {"image_channels": data.image_channels, "image_size": data.image_size}
    if config[NetworkChoice].name == "ddpm_unet":
        return config.make(DDPMUNetSettings, **shape)
    return config.make(ImprovedUNetSettings, **shape)


def make_noise_network(config: Config, device: torch.device) -> nn.Module:
    """A U-Net that takes images (B, C, H, W) and labels (B,) and predicts the noise in the images.

    Args:
        config: checked.
        device: where the network goes.
    """
    settings = noise_network_settings(config)

    def make() -> nn.Module:
        return DDPMUNet(settings) if isinstance(settings, DDPMUNetSettings) else ImprovedUNet(settings)

    return seeded(make, config[RunOptions].seed, device)
