"""Options of NCSN++, and what makes them impossible."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from models.levels import check_levels, n_groups
from util.errors import UsageError
from util.option import option, training_option


@dataclass(frozen=True)
class NCSNppSettings:
    """NCSN++ (name ncsnpp): what determines the network; checked when it is made, before anything is built.

    Attributes:
        in_channels: 2 C for CLD (data and velocity), C otherwise.
        out_channels: C.
        image_size: height and width of the images, which places the attention.
        n_channels: base width n.
        ch_mult: width of each level in units of n, finest level first.
        n_resblocks: residual blocks per level.
        attn_resolutions: resolutions with attention.
        use_fir: resample with ``fir_kernel`` instead of box filters.
        fir_kernel: taps of the one-dimensional filter.
        progressive_input: "residual" (an input pyramid, which needs ``use_fir``) or "none".
        embedding_type: "fourier" (of ln t, so t > 0) or "positional".
        fourier_scale: standard deviation of the Fourier frequencies.
        dropout: probability.
        init_scale: initial variance scale of the last layer of blocks and network; 0 stands for 1e-10.

    Raises:
        UsageError: settings that cannot work together, in one line.
    """

    published_keys: ClassVar[dict[str, Any]] = {
        "resamp_with_conv": True,
        "skip_rescale": True,
        "resblock_type": "biggan",
        "progressive": "none",
        "progressive_combine": "sum",
        "attention_type": "ddpm",
        "normalization": "GroupNorm",
        "nonlinearity": "swish",
        "conv_size": 3,
    }

    in_channels: int
    out_channels: int
    image_size: int
    n_channels: int = option(128, "base width", minimum=4)
    ch_mult: tuple[int, ...] = option((1, 2, 2, 2), "width of each level in units of n_channels", minimum=1)
    n_resblocks: int = option(8, "residual blocks of each level", minimum=1)
    attn_resolutions: tuple[int, ...] = option((16,), "resolutions with attention", minimum=1)
    use_fir: bool = option(True, "resample with the FIR filter fir_kernel")
    fir_kernel: tuple[int, ...] = option((1, 3, 3, 1), "taps of the FIR filter", minimum=0)
    progressive_input: str = option("residual", "input pyramid", choices=("none", "residual"))
    embedding_type: str = option("fourier", "time embedding", choices=("fourier", "positional"))
    fourier_scale: float = option(16.0, "scale of the Fourier frequencies", above=0.0)
    dropout: float = training_option(0.1, "dropout probability", minimum=0.0, maximum=0.999)
    init_scale: float = option(0.0, "initial scale of each block's last layer", minimum=0.0)

    def __post_init__(self) -> None:
        check_ncsnpp_settings(self)

    @property
    def resolutions(self) -> list[int]:
        """Image size of each level, finest first."""
        return [self.image_size >> level for level in range(len(self.ch_mult))]


@dataclass(frozen=True)
class Stage:
    """One residual block and what comes with it.

    Attributes:
        in_channels: of the block, with the channels of the skip connection where there is one.
        out_channels: of the block.
        resample: "down", "up" or "".
        attention: whether attention follows.
        pyramid: whether the input pyramid joins afterwards.
        takes_skip: whether an entry of the skip stack is concatenated before.
    """

    in_channels: int
    out_channels: int
    resample: str = ""
    attention: bool = False
    pyramid: bool = False
    takes_skip: bool = False


def plan(settings: NCSNppSettings) -> tuple[list[Stage], list[Stage]]:
    """The stages of the down path and of the up path, in order."""
    widths = [settings.n_channels * multiplier for multiplier in settings.ch_mult]
    has_attention = [resolution in settings.attn_resolutions for resolution in settings.resolutions]
    channels, skips = settings.n_channels, [settings.n_channels]
    down: list[Stage] = []
    for level, width in enumerate(widths):
        for _ in range(settings.n_resblocks):
            down.append(Stage(channels, width, attention=has_attention[level]))
            channels = width
            skips.append(width)
        if level + 1 < len(widths):
            down.append(Stage(width, width, "down", pyramid=settings.progressive_input == "residual"))
            skips.append(width)
    up: list[Stage] = []
    for level, width in reversed(list(enumerate(widths))):
        for i in range(settings.n_resblocks + 1):
            attention = has_attention[level] and i == settings.n_resblocks
            up.append(Stage(channels + skips.pop(), width, attention=attention, takes_skip=True))
            channels = width
        if level > 0:
            up.append(Stage(width, width, "up"))
    return down, up


def check_ncsnpp_settings(settings: NCSNppSettings) -> None:
    """Refuse settings from which no network can be built; builds nothing.

    Raises:
        UsageError: one line that names the option.
    """
    check_levels(settings, ("in_channels", "out_channels", "image_size", "n_channels", "n_resblocks"))
    if settings.progressive_input not in ("none", "residual"):
        raise UsageError(f"progressive_input is {settings.progressive_input!r}; choose none or residual")
    if settings.progressive_input == "residual" and not settings.use_fir:
        raise UsageError("progressive_input residual needs use_fir; switch that on, or set progressive_input to none")
    if settings.use_fir and (len(settings.fir_kernel) < 2 or len(settings.fir_kernel) % 2):
        raise UsageError(f"fir_kernel has {len(settings.fir_kernel)} taps; give an even number, for example 1 3 3 1")
    if settings.use_fir and sum(settings.fir_kernel) == 0:
        raise UsageError("fir_kernel has taps that add up to 0 and cannot be normalised; 1 3 3 1 is usual")
    if settings.embedding_type not in ("fourier", "positional"):
        raise UsageError(f"embedding_type is {settings.embedding_type!r}; choose fourier or positional")
    if settings.embedding_type == "positional" and (settings.n_channels < 4 or settings.n_channels % 2):
        raise UsageError(f"n_channels {settings.n_channels} does not suit embedding_type positional; use 4, 6, 8, ...")
    if not 0.0 <= settings.dropout < 1.0:
        raise UsageError(f"dropout is {settings.dropout}; it has to be at least 0 and below 1")
    down, up = plan(settings)
    for stage in down + up:
        for channels in (stage.in_channels, stage.out_channels):
            if channels < 4 or channels % n_groups(channels):
                raise UsageError(
                    f"n_channels {settings.n_channels} and ch_mult {list(settings.ch_mult)} make a layer of "
                    f"{channels} channels, which group norm cannot split evenly; use a multiple of 32, or "
                    "of 4 if no layer has more than 128"
                )
