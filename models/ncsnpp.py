"""NCSN++ and DDPM++, the U-Nets of continuous-time score models (Song et al., arXiv 2011.13456, appendix H).

CLD (arXiv 2112.07068), ScoreFlow (arXiv 2101.09258) and INDM (arXiv 2205.13699) use them. The state_dict has
the names, order and shapes of the published PyTorch checkpoints: ``all_modules.<index>.<name>``.
"""

from __future__ import annotations

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
)
from models.ncsnpp_settings import NCSNppSettings, Stage, plan
from models.resample import BoxFilter, FIRFilter


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

        def block(stage: Stage) -> ResidualBlock:
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

        self._down, self._up = plan(settings)
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
        middle = Stage(channels, channels)
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
