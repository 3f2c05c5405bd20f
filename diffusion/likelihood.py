"""Log-likelihoods by the probability-flow equation (Song et al., arXiv 2011.13456, Appendix D.2)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from diffusion.ode import solve
from diffusion.prior import prior_log_density
from diffusion.process import Process, ScoreFunction
from diffusion.reverse import probability_flow_drift


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
    probe: torch.Tensor,
    *,
    start: float,
    solver: str,
    rtol: float,
    atol: float,
    n_steps: int | None = None,
    published_behaviour: bool = False,
    on_evaluation: Callable[[int, float], None] | None = None,
) -> OdeLogLikelihood:
    """Integrate state and divergence from t = start to 1, the divergence by Hutchinson's estimator.

    Args:
        score: differentiable in the state; its parameters get no gradient.
        u0: (B, k C, ...), states at the start.
        probe: shape of u0, random with mean zero and unit covariance (signs or standard normals), fixed for
            the run; the estimate is unbiased over probes.
        start: smallest forward time.
        solver, rtol, atol, n_steps, on_evaluation: as in diffusion.ode.solve; the time told is t.
        published_behaviour: round ``start`` to float32.

    Raises:
        UsageError, RunFailed: as diffusion.ode.solve.
    """
    probe = probe.double()

    def right_hand_side(t: torch.Tensor, parts: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        times = t.expand(len(u0))
        with torch.enable_grad():
            u = parts[0].detach().requires_grad_()
            drift = -probability_flow_drift(process, score(u, times), u, 1 - times)
            (product,) = torch.autograd.grad(drift, u, probe)
        return drift.detach(), (product * probe).flatten(1).sum(1)

    if published_behaviour:
        start = torch.tensor(start, dtype=torch.float32).item()
    (final_state, divergence), n_evaluations = solve(
        right_hand_side,
        (u0, torch.zeros(len(u0), dtype=torch.float64, device=u0.device)),
        start,
        1.0,
        solver=solver,
        rtol=rtol,
        atol=atol,
        n_steps=n_steps,
        on_evaluation=on_evaluation,
    )
    return OdeLogLikelihood(final_state, divergence, prior_log_density(process, final_state), n_evaluations)
