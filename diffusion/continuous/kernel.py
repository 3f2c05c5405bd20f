"""The Gaussian perturbation kernel of any process, and the multipliers that training takes from it."""

import torch

from diffusion.continuous.process import Process, apply


def kernel_mean(process: Process, u0: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Mean at times t float64 (B,) of states that start at u0 (B, k C, ...); float64 like u0."""
    return apply(process.transition(t), u0)


def perturb(process: Process, u0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A draw from the perturbation kernel of training; float64 like u0.

    Args:
        u0: (B, k C, ...), the initial state, with velocity 0 where the kernel averages over the velocity.
        noise: standard normal, shape of u0.
        t: float64 (B,).
    """
    return kernel_mean(process, u0, t) + apply(process.kernel_factor(t), noise)


def noise_multiplier(process: Process, t: torch.Tensor) -> torch.Tensor:
    """The number n(t) for which the score of the kernel is n z, z the noise of the last component; float64
    like t.

    For a covariance L L^T the score is -L^-T z, whose last component is -z / L_kk: -1 / sqrt(variance) for
    one component, -ell_t of Dockhorn et al. (arXiv 2112.07068, Section 3.2) with a velocity.
    """
    return -1.0 / process.kernel_factor(t)[..., -1, -1]


def loss_multiplier(process: Process, t: torch.Tensor) -> torch.Tensor:
    """G(t)^2 / 2, the maximum-likelihood weight of score matching (Song et al., arXiv 2101.09258); float64
    like t."""
    return process.diffusion_coefficient(t) ** 2 / 2
