"""What the U-Nets of discrete diffusion models have in common: their settings, and what makes settings impossible."""

from __future__ import annotations

from dataclasses import dataclass

from models.levels import check_levels
from util.errors import UsageError
from util.option import option, training_option


@dataclass(frozen=True)
class UNetSettings:
    """U-Net: what determines a network; checked when it is made, before anything is built.

    Attributes:
        image_channels: C, of the input and of the predicted noise.
        image_size: height and width of the images, which places the attention.
        n_channels: base width n.
        ch_mult: width of each level in units of n, finest level first.
        n_resblocks: residual blocks per level.
        attn_resolutions: resolutions with attention.
        n_groups: groups of every group norm. A block that is n_groups wide has one channel in each, so its second
            group norm takes an embedding that was added to the channels away again.
        group_norm_eps: added to the variances of the group norms: 1e-5 in HSIVI, improved-diffusion and older
            ddpm-torch, 1e-6 in newer ddpm-torch.
        dropout: probability, before the second convolution of every residual block.

    Raises:
        UsageError: settings that cannot work together, in one line.
    """

    image_channels: int
    image_size: int
    n_channels: int = option(128, "base width", minimum=4)
    ch_mult: tuple[int, ...] = option((1, 2, 2, 2), "width of each level in units of n_channels", minimum=1)
    n_resblocks: int = option(8, "residual blocks of each level", minimum=1)
    attn_resolutions: tuple[int, ...] = option((16,), "resolutions with attention", minimum=1)
    n_groups: int = option(32, "groups of the group norms", minimum=1)
    group_norm_eps: float = option(
        1e-5, "added to variances in group norms: 1e-5 in HSIVI and improved-diffusion, 1e-6 in newer ddpm-torch",
        above=0.0,
    )  # fmt: skip
    dropout: float = training_option(0.1, "dropout probability", minimum=0.0, maximum=0.999)

    def __post_init__(self) -> None:
        check_unet_settings(self)

    @property
    def resolutions(self) -> list[int]:
        """Image size of each level, finest first."""
        return [self.image_size >> level for level in range(len(self.ch_mult))]

    @property
    def widths(self) -> list[int]:
        """Channels of each level, finest first."""
        return [self.n_channels * multiplier for multiplier in self.ch_mult]


@dataclass(frozen=True)
class DDPMUNetSettings(UNetSettings):
    """U-Net of ddpm-torch (name ddpm_unet): as ``UNetSettings``; its first multiplier has to be 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ch_mult[0] != 1:
            raise UsageError(
                f"ch_mult is {list(self.ch_mult)}: this network ends with n_channels channels, so the first "
                "multiplier has to be 1; change n_channels instead"
            )


@dataclass(frozen=True)
class ImprovedUNetSettings(UNetSettings):
    """U-Net of improved-diffusion (name improved_unet): as ``UNetSettings``, and:

    Attributes:
        num_heads: of every attention block.
        learn_sigma: whether the last layer has C more outputs, an interpolation of variances that this program
            does not use. They are in the weights so that published checkpoints fit, and get no gradient.
        use_scale_shift_norm: the embedding scales and shifts the output of a block's second group norm, instead of
            being added before it.
    """

    num_heads: int = option(4, "attention heads", minimum=1)
    learn_sigma: bool = option(False, "weights for unused variance outputs, as published networks have")
    use_scale_shift_norm: bool = option(True, "labels scale and shift group norms instead of adding")

    def __post_init__(self) -> None:
        super().__post_init__()
        for width in self.widths:
            if self.num_heads < 1 or width % self.num_heads:
                raise UsageError(
                    f"num_heads {self.num_heads} does not divide a level of {width} channels; change num_heads, "
                    "n_channels or ch_mult"
                )


def check_unet_settings(settings: UNetSettings) -> None:
    """Refuse settings from which no network can be built; builds nothing.

    Raises:
        UsageError: one line that names the option.
    """
    check_levels(settings, ("image_channels", "image_size", "n_channels", "n_resblocks", "n_groups"))
    if settings.n_channels < 4 or settings.n_channels % 2:
        raise UsageError(f"n_channels {settings.n_channels} does not suit the embedding of labels; use 4, 6, 8, ...")
    if settings.n_channels % settings.n_groups:
        raise UsageError(
            f"n_channels {settings.n_channels} does not split into the n_groups {settings.n_groups} of the group "
            f"norms; use a multiple of {settings.n_groups} or fewer groups"
        )
    if settings.group_norm_eps <= 0.0:
        raise UsageError(f"group_norm_eps is {settings.group_norm_eps}; it has to be above 0, 1e-5 is usual")
    if not 0.0 <= settings.dropout < 1.0:
        raise UsageError(f"dropout is {settings.dropout}; it has to be at least 0 and below 1")
