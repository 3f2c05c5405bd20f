"""Log-likelihoods by the probability-flow equation (Song et al., arXiv 2011.13456, Appendix D.2)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from diffusion.bits import gaussian_entropy
from diffusion.continuous.prior import prior_log_density
from diffusion.continuous.process import Process, ScoreFunction
from diffusion.continuous.reverse import probability_flow_drift
from diffusion.divergence import integrate_with_divergence
from diffusion.ode import Solver


@dataclass(frozen=True)
class OdeLogLikelihood:
    """The log-likelihood of states, in its parts; natural logarithm.

    Attributes:
        final_state: float64 (B, k C, ...), the state at t = 1.
        divergence: float64 (B,), the integral of the (estimated) divergence along the path.
        prior: log density of each component of the final state under the prior, float64 (B,) each.
        n_evaluations: right-hand sides evaluated (NFE); drift and divergence come from one network
            evaluation.
    """

    final_state: torch.Tensor
    divergence: torch.Tensor
    prior: dict[str, torch.Tensor]
    n_evaluations: int

    @property
    def log_density(self) -> torch.Tensor:
        """float64 (B,), of the state at the start, velocity included."""
        return sum(self.prior.values(), self.divergence)


def ode_log_likelihood(
    process: Process,
    score: ScoreFunction,
    u0: torch.Tensor,
    probe: torch.Tensor | None,
    *,
    start: float,
    solver: Solver,
    on_evaluation: Callable[[int, float], None] | None = None,
) -> OdeLogLikelihood:
    """Integrate state and divergence from t = start to 1, the divergence by Hutchinson's estimator or exactly.

    Args:
        score: differentiable in the state; its parameters get no gradient.
        u0: (B, k C, ...), states at the start.
        probe: as in diffusion.divergence.integrate_with_divergence.
        start: smallest forward time.
        solver, on_evaluation: as in diffusion.ode.solve; the time told is t.

    Raises:
        UsageError, RunFailed: as diffusion.ode.solve.
    """

    def drift(u: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        return -probability_flow_drift(process, score(u, times), u, 1 - times)

    final_state, divergence, n_evaluations = integrate_with_divergence(
        drift, u0, probe, start, 1.0, solver, on_evaluation
    )
    return OdeLogLikelihood(final_state, divergence, prior_log_density(process, final_state), n_evaluations)


def negative_log_likelihood_terms(process: Process, likelihood: OdeLogLikelihood) -> dict[str, torch.Tensor]:
    """What adds up to -log p(x), in nats, each float64 (B,).

    For a process with a velocity the sum is an upper bound: -log p(x) <= -log p(x, v) - H(v), averaged over the
    velocity drawn at t = 0 (Dockhorn et al., arXiv 2112.07068, Appendix B).

    Returns:
        "prior_x" (and "prior_v"), "divergence" and, with a velocity, "velocity_entropy".
    """
    terms = {f"prior_{name}": -density for name, density in likelihood.prior.items()}
    terms["divergence"] = -likelihood.divergence
    if process.velocity_variance is not None:
        entropy = gaussian_entropy(process.velocity_variance, likelihood.final_state[0].numel() // 2)
        terms["velocity_entropy"] = torch.full_like(likelihood.divergence, -entropy)
    return terms
