"""Score networks as the options describe them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from models.ddpm_unet import DDPMUNet, DDPMUNetSettings
from models.improved_unet import ImprovedUNet, ImprovedUNetSettings
from models.mlp import MLP
from models.ncsnpp import NCSNpp, NCSNppSettings
from util.config import Config
from util.errors import UsageError
from util.noise import derive_seed


def check_score_network(config: Config) -> None:
    """Raise UsageError where ``--name`` does not take the data, or the settings of an NCSN++ cannot work together."""
    data, network = config.data, config.network.name
    if data.is_image and network != "ncsnpp":
        raise UsageError(f"--name {network} does not take images; use --name ncsnpp")
    if not data.is_image and network != "mlp":
        raise UsageError(f"--name {network} does not take points; use --name mlp")
    if data.is_image:
        ncsnpp_settings(config, data.image_channels, data.image_channels)


def ncsnpp_settings(config: Config, in_channels: int, out_channels: int) -> NCSNppSettings:
    """Settings of an image network; making them checks them.

    Raises:
        UsageError: settings that cannot work together.
    """
    options = config.network
    return NCSNppSettings(
        in_channels=in_channels,
        out_channels=out_channels,
        image_size=config.data.image_size,
        n_channels=options.n_channels,
        ch_mult=tuple(options.ch_mult),
        n_resblocks=options.n_resblocks,
        attn_resolutions=tuple(options.attn_resolutions),
        use_fir=options.use_fir,
        fir_kernel=tuple(options.fir_kernel),
        progressive_input=options.progressive_input,
        embedding_type=options.embedding_type,
        fourier_scale=options.fourier_scale,
        dropout=options.dropout,
        init_scale=options.init_scale,
    )


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
    options = config.network

    def make() -> nn.Module:
        if options.name == "ncsnpp":
            return NCSNpp(ncsnpp_settings(config, in_channels, out_channels))
        return MLP(in_channels, out_channels, n_hidden=options.n_hidden, n_layers=options.n_layers)

    return seeded(make, config.run.seed, device, config.data.is_image)


def noise_network_settings(config: Config) -> DDPMUNetSettings | ImprovedUNetSettings:
    """Settings of a network that predicts noise from discrete labels; making them checks them.

    Raises:
        UsageError: settings that cannot work together, or a network of another kind.
    """
    options, data = config.network, config.data
    if options.name not in ("ddpm_unet", "improved_unet"):
        raise UsageError(
            f"--name {options.name} does not take the labels of discrete steps; use ddpm_unet or improved_unet with "
            f"--system {config.run.system}"
        )
    common: dict[str, Any] = {
        "image_channels": data.image_channels,
        "image_size": data.image_size,
        "n_channels": options.n_channels,
        "ch_mult": tuple(options.ch_mult),
        "n_resblocks": options.n_resblocks,
        "attn_resolutions": tuple(options.attn_resolutions),
        "n_groups": options.n_groups,
        "group_norm_eps": options.group_norm_eps,
        "dropout": options.dropout,
    }
    if options.name == "ddpm_unet":
        if options.learn_sigma:
            raise UsageError("--learn_sigma: ddpm_unet has no variance outputs; use improved_unet, or leave it out")
        return DDPMUNetSettings(**common)
    return ImprovedUNetSettings(
        **common,
        num_heads=options.num_heads,
        learn_sigma=options.learn_sigma,
        use_scale_shift_norm=options.use_scale_shift_norm,
    )


def make_noise_network(config: Config, device: torch.device) -> nn.Module:
    """A U-Net that takes images (B, C, H, W) and labels (B,) and predicts the noise in the images.

    Args:
        config: checked.
        device: where the network goes.
    """
    settings = noise_network_settings(config)

    def make() -> nn.Module:
        return DDPMUNet(settings) if isinstance(settings, DDPMUNetSettings) else ImprovedUNet(settings)

    return seeded(make, config.run.seed, device)
