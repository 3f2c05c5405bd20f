"""The reverse-time equation and the probability flow of any process, in reversed time tau = 1 - t.

tau runs from 0 (prior) to 1 (data). Song et al., arXiv 2011.13456, Eqs. 6 and 13; for a process with a
velocity Dockhorn et al., arXiv 2112.07068, Section 3.3 and Appendix B. Throughout, ``score`` is the value of
the score at (u, 1 - tau), shape (B, C, ...); u is (B, k C, ...); tau float64 (B,); results are float64,
shaped like u.
"""

import torch

from diffusion.continuous.process import Process, diffusion, drift, driven
from diffusion.tensors import expand


def _reverse(
    process: Process, score: torch.Tensor, u: torch.Tensor, tau: torch.Tensor, share: float
) -> torch.Tensor:
    t = 1 - tau
    strength = share * process.diffusion_coefficient(t) ** 2
    return driven(process, expand(strength, score) * score) - drift(process, u, t)


def reverse_drift(process: Process, score: torch.Tensor, u: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
    """Drift of the reverse-time stochastic equation, -f + G^2 s."""
    return _reverse(process, score, u, tau, 1.0)


def reverse_diffusion(process: Process, u: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
    """Diffusion coefficient of the reverse-time stochastic equation, G(1 - tau)."""
    return diffusion(process, u, 1 - tau)


def probability_flow_drift(
    process: Process, score: torch.Tensor, u: torch.Tensor, tau: torch.Tensor
) -> torch.Tensor:
    """Drift of the probability-flow ordinary equation, -f + G^2 s / 2; its diffusion coefficient is zero."""
    return _reverse(process, score, u, tau, 0.5)
