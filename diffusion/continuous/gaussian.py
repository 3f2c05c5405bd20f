"""Gaussian data, for which every process has a closed form: the exact score, density, entropy and moments."""

import math
from dataclasses import dataclass

import torch

from diffusion.continuous.kernel import kernel_mean
from diffusion.continuous.process import Process, ScoreFunction, initial_state, n_components


@dataclass(frozen=True)
class GaussianData:
    """Data N(mean, covariance), to check a sampler or a likelihood against what it has to give.

    Attributes:
        mean: float64 (D,).
        covariance: float64 (D, D), symmetric and positive definite.
    """

    mean: torch.Tensor
    covariance: torch.Tensor

    @property
    def entropy(self) -> float:
        """In nats."""
        return 0.5 * (len(self.mean) * math.log(2 * math.pi * math.e) + torch.logdet(self.covariance).item())

    def sample(self, noise: torch.Tensor) -> torch.Tensor:
        """Data (B, D) from standard normals (B, D)."""
        return self.mean + noise.double() @ torch.linalg.cholesky(self.covariance).T

    def log_density(self, x: torch.Tensor) -> torch.Tensor:
        """Log density of data (B, D), nats, float64 (B,)."""
        return torch.distributions.MultivariateNormal(self.mean, self.covariance).log_prob(x.double())

    def marginal(self, process: Process, t: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean (k D,) and covariance (k D, k D) of the state at forward time t, float64."""
        times = torch.tensor([t], dtype=torch.float64)
        mean = kernel_mean(process, initial_state(process, self.mean[None]), times)[0]
        eigenvalues, eigenvectors = torch.linalg.eigh(self.covariance)
        factor = self._factor(process, times, eigenvalues)[0]
        blocks = factor @ factor.mT
        covariance = torch.einsum("ad,dij,bd->iajb", eigenvectors, blocks, eigenvectors)
        return mean, covariance.reshape(len(mean), len(mean))

    def score(self, process: Process) -> ScoreFunction:
        """The exact score of the process for these data: score(u, t) for u (B, k D), t (B,), float64 (B,
        D)."""
        eigenvalues, eigenvectors = torch.linalg.eigh(self.covariance)

        def score(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            start = initial_state(process, self.mean.expand(len(u), -1))
            residual = (u - kernel_mean(process, start, t)).unflatten(1, (n_components(process), -1))
            # Along each eigenvector of the covariance the components form a small Gaussian of their own.
            rotated = (residual @ eigenvectors).mT.unsqueeze(-1)
            factor = self._factor(process, t, eigenvalues)
            whitened = torch.linalg.solve_triangular(factor, rotated, upper=False).squeeze(-1)
            return -(whitened[..., -1] / factor[..., -1, -1]) @ eigenvectors.T

        return score

    def _factor(self, process: Process, t: torch.Tensor, eigenvalues: torch.Tensor) -> torch.Tensor:
        """Cholesky factors (B, D, k, k) along the eigenvectors of the covariance."""
        velocity = () if process.velocity_variance is None else (process.velocity_variance,)
        return process.covariance_factor(t[:, None], (eigenvalues, *velocity))
