"""A residual network for points, conditioned on time."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

SMALLEST_TIME = 1e-6
N_TIME_FREQUENCIES = 6
TIME_WIDTH = 64
N_SPACE_FREQUENCIES = 2


class MLP(nn.Module):
    """Residual blocks on Fourier features of the state, each modulated by the time.

    After some diffusion it is a combination of the coordinates (position minus time times velocity, for CLD) that
    shows the details of a density, so features are taken of z = u + M(t) u with a learned matrix M(t): sin and cos
    of pi z and 2 pi z (Tancik et al., arXiv 2006.10739). More frequencies make the probability-flow ODE stiff and
    the score no better. The time scales and shifts every hidden layer (Perez et al., arXiv 1709.07871). It enters
    as ln t as well as t, since noise levels change over orders of magnitude near t = 0.

    Args:
        in_features: numbers per state.
        out_features: numbers per output.
        n_hidden: width.
        n_layers: residual blocks.
    """

    def __init__(self, in_features: int, out_features: int, n_hidden: int, n_layers: int) -> None:
        super().__init__()
        self.time = nn.Sequential(
            nn.Linear(2 + 2 * N_TIME_FREQUENCIES, TIME_WIDTH),
            nn.SiLU(),
            nn.Linear(TIME_WIDTH, TIME_WIDTH),
            nn.SiLU(),
        )
        self.mixing = nn.Linear(TIME_WIDTH, in_features * in_features)
        self.first = nn.Linear(in_features * (1 + 2 * N_SPACE_FREQUENCIES), n_hidden)
        self.first_modulation = nn.Linear(TIME_WIDTH, 2 * n_hidden)
        self.blocks = nn.ModuleList(_Block(n_hidden) for _ in range(n_layers))
        self.last = nn.Linear(n_hidden, out_features)
        for layer in (self.mixing, self.last):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """u (B, in_features) and t (B,) in [0, 1] to (B, out_features); below 1e-6, t counts as 1e-6."""
        with torch.autocast(u.device.type, enabled=False):
            time = self.time(time_features(t.to(self.first.weight.dtype)))
            # One matrix for each sample, in row order.
            mixing = self.mixing(time).unflatten(1, (u.shape[1], u.shape[1]))
            z = u + (mixing @ u[:, :, None]).squeeze(2)
            features = torch.cat([u, space_features(z)], dim=1)
        h = _modulate(self.first(features), self.first_modulation(time))
        for block in self.blocks:
            h = block(h, time)
        return self.last(F.silu(h))


class _Block(nn.Module):
    """h + linear(silu(modulated linear(silu(h)))), the second linear map zero at first."""

    def __init__(self, n_hidden: int) -> None:
        super().__init__()
        self.inner = nn.Linear(n_hidden, n_hidden)
        self.modulation = nn.Linear(TIME_WIDTH, 2 * n_hidden)
        self.outer = nn.Linear(n_hidden, n_hidden)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, h: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return h + self.outer(F.silu(_modulate(self.inner(F.silu(h)), self.modulation(time))))


def time_features(t: torch.Tensor) -> torch.Tensor:
    """s, t, sin(pi k s), cos(pi k s) with s from 1 at t = 1e-6 to 0 at t = 1, linear in ln t; (B,) to (B, 14)."""
    s = t.clamp_min(SMALLEST_TIME).log() / math.log(SMALLEST_TIME)
    angle = s[:, None] * math.pi * torch.arange(1, N_TIME_FREQUENCIES + 1, device=t.device)
    return torch.cat([s[:, None], t[:, None], angle.sin(), angle.cos()], dim=1)


def space_features(z: torch.Tensor) -> torch.Tensor:
    """sin and cos of pi 2^k z for k = 0, 1, ...; (B, D) to (B, 2 D N_SPACE_FREQUENCIES)."""
    frequencies = math.pi * 2.0 ** torch.arange(N_SPACE_FREQUENCIES, dtype=z.dtype, device=z.device)
    angle = z[:, :, None] * frequencies
    return torch.cat([angle.sin(), angle.cos()], dim=2).flatten(1)


def _modulate(h: torch.Tensor, scale_and_shift: torch.Tensor) -> torch.Tensor:
    scale, shift = scale_and_shift.chunk(2, dim=1)
    return torch.addcmul(h + shift, h, scale)
