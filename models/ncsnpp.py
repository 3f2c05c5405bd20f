"""NCSN++ and DDPM++, the U-Nets of continuous-time score models (Song et al., arXiv 2011.13456, appendix H).

CLD (arXiv 2112.07068), ScoreFlow (arXiv 2101.09258) and INDM (arXiv 2205.13699) use them. The state_dict has
the names, order and shapes of the published PyTorch checkpoints: ``all_modules.<index>.<name>``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from models.embeddings import FourierEmbedding, positional_embedding
from models.layers import (
    SQRT_HALF,
    AttentionBlock,
    PyramidDownsampling,
    ResidualBlock,
    convolution,
    group_norm,
    linear,
    n_groups,
)
from models.levels import check_levels
from models.resample import BoxFilter, FIRFilter
from util.errors import UsageError


@dataclass(frozen=True)
class NCSNppSettings:
    """What determines the network; checked when it is made, before anything is built.

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

    in_channels: int
    out_channels: int
    image_size: int
    n_channels: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 2, 2)
    n_resblocks: int = 8
    attn_resolutions: tuple[int, ...] = (16,)
    use_fir: bool = True
    fir_kernel: tuple[float, ...] = (1, 3, 3, 1)
    progressive_input: str = "residual"
    embedding_type: str = "fourier"
    fourier_scale: float = 16.0
    dropout: float = 0.1
    init_scale: float = 0.0

    def __post_init__(self) -> None:
        check_ncsnpp_settings(self)

    @property
    def resolutions(self) -> list[int]:
        """Image size of each level, finest first."""
        return [self.image_size >> level for level in range(len(self.ch_mult))]


@dataclass(frozen=True)
class _Stage:
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


def _plan(settings: NCSNppSettings) -> tuple[list[_Stage], list[_Stage]]:
    """The stages of the down path and of the up path, in order."""
    widths = [settings.n_channels * multiplier for multiplier in settings.ch_mult]
    has_attention = [resolution in settings.attn_resolutions for resolution in settings.resolutions]
    channels, skips = settings.n_channels, [settings.n_channels]
    down: list[_Stage] = []
    for level, width in enumerate(widths):
        for _ in range(settings.n_resblocks):
            down.append(_Stage(channels, width, attention=has_attention[level]))
            channels = width
            skips.append(width)
        if level + 1 < len(widths):
            down.append(_Stage(width, width, "down", pyramid=settings.progressive_input == "residual"))
            skips.append(width)
    up: list[_Stage] = []
    for level, width in reversed(list(enumerate(widths))):
        for i in range(settings.n_resblocks + 1):
            attention = has_attention[level] and i == settings.n_resblocks
            up.append(_Stage(channels + skips.pop(), width, attention=attention, takes_skip=True))
            channels = width
        if level > 0:
            up.append(_Stage(width, width, "up"))
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
    down, up = _plan(settings)
    for stage in down + up:
        for channels in (stage.in_channels, stage.out_channels):
            if channels < 4 or channels % n_groups(channels):
                raise UsageError(
                    f"n_channels {settings.n_channels} and ch_mult {list(settings.ch_mult)} make a layer of "
                    f"{channels} channels, which group norm cannot split evenly; use a multiple of 32, or "
                    "of 4 if no layer has more than 128"
                )


class NCSNpp(nn.Module):
    """The network: u (B, in_channels, image_size, image_size) and t (B,) to (B, out_channels, same size).

    Works in any memory format and under autocast; the time embedding is computed in the dtype of the
    parameters even there. There is no preconditioning: scaling of input, output and time is the caller's.
    """

    def __init__(self, settings: NCSNppSettings) -> None:
        super().__init__()
        self.settings = settings
        n = settings.n_channels
        width = 4 * n
        self.all_modules = nn.ModuleList()
        # Shared and outside the list, because the indices in the list are part of the published names.
        fir = FIRFilter(settings.fir_kernel) if settings.use_fir else None
        self.resampling = fir if fir is not None else BoxFilter()
        resampling = {"down": self.resampling.downsample, "up": self.resampling.upsample, "": None}

        def block(stage: _Stage) -> ResidualBlock:
            return ResidualBlock(
                stage.in_channels,
                stage.out_channels,
                width,
                settings.dropout,
                settings.init_scale,
                resampling[stage.resample],
            )

        if settings.embedding_type == "fourier":
            self.all_modules.append(FourierEmbedding(n, settings.fourier_scale))
        embedding_width = 2 * n if settings.embedding_type == "fourier" else n
        self.all_modules.extend([linear(embedding_width, width), linear(width, width)])
        self.all_modules.append(convolution(settings.in_channels, n))

        self._down, self._up = _plan(settings)
        pyramid_channels = settings.in_channels
        for stage in self._down:
            self.all_modules.append(block(stage))
            if stage.attention:
                self.all_modules.append(AttentionBlock(stage.out_channels, settings.init_scale))
            if stage.pyramid:
                assert fir is not None
                self.all_modules.append(PyramidDownsampling(pyramid_channels, stage.out_channels, fir))
                pyramid_channels = stage.out_channels
        channels = self._down[-1].out_channels
        middle = _Stage(channels, channels)
        self.all_modules.extend([block(middle), AttentionBlock(channels, settings.init_scale), block(middle)])
        for stage in self._up:
            self.all_modules.append(block(stage))
            if stage.attention:
                self.all_modules.append(AttentionBlock(stage.out_channels, settings.init_scale))
        channels = self._up[-1].out_channels
        self.all_modules.append(group_norm(channels))
        self.all_modules.append(convolution(channels, settings.out_channels, scale=settings.init_scale))

    def forward(self, u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        modules = iter(self.all_modules)
        with torch.autocast(u.device.type, enabled=False):
            if self.settings.embedding_type == "fourier":
                embedding = next(modules)(t)
            else:
                embedding = positional_embedding(t.to(u.dtype), self.settings.n_channels)
            embedding = next(modules)(embedding)
            # Every block starts with the activation of the embedding, so it is applied once, here.
            embedding = F.silu(next(modules)(F.silu(embedding)))

        h = next(modules)(u)
        pyramid, skips = u, [h]
        for stage in self._down:
            h = next(modules)(h, embedding)
            if stage.attention:
                h = next(modules)(h)
            if stage.pyramid:
                pyramid = h = (next(modules)(pyramid) + h) * SQRT_HALF
            skips.append(h)
        h = next(modules)(h, embedding)
        h = next(modules)(h)
        h = next(modules)(h, embedding)
        for stage in self._up:
            if stage.takes_skip:
                h = torch.cat([h, skips.pop()], dim=1)
            h = next(modules)(h, embedding)
            if stage.attention:
                h = next(modules)(h)
        h = F.silu(next(modules)(h))
        return next(modules)(h)
