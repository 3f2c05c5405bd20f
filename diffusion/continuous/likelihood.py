"""Log-likelihoods by the probability-flow equation (Song et al., arXiv 2011.13456, Appendix D.2)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from diffusion.continuous.prior import prior_log_density
from diffusion.continuous.process import Process, ScoreFunction
from diffusion.continuous.reverse import probability_flow_drift
from diffusion.ode import solve


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
    solver: str,
    rtol: float,
    atol: float,
    n_steps: int | None = None,
    published_behaviour: bool = False,
    on_evaluation: Callable[[int, float], None] | None = None,
) -> OdeLogLikelihood:
    """Integrate state and divergence from t = start to 1, the divergence by Hutchinson's estimator or exactly.

    Args:
        score: differentiable in the state; its parameters get no gradient.
        u0: (B, k C, ...), states at the start.
        probe: shape of u0, random with mean zero and unit covariance (signs or standard normals), fixed for
            the run; the estimate is unbiased over probes. None computes the divergence itself, at the cost of
            one vector-Jacobian product for each number of a state.
        start: smallest forward time.
        solver, rtol, atol, n_steps, on_evaluation: as in diffusion.ode.solve; the time told is t.
        published_behaviour: round ``start`` to float32.

    Raises:
        UsageError, RunFailed: as diffusion.ode.solve.
    """

    def drift(u: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        return -probability_flow_drift(process, score(u, times), u, 1 - times)

    if published_behaviour:
        start = torch.tensor(start, dtype=torch.float32).item()
    final_state, divergence, n_evaluations = integrate_with_divergence(
        drift, u0, probe, start, 1.0, solver=solver, rtol=rtol, atol=atol, n_steps=n_steps, on_evaluation=on_evaluation
    )
    return OdeLogLikelihood(final_state, divergence, prior_log_density(process, final_state), n_evaluations)


def integrate_with_divergence(
    drift: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    start_state: torch.Tensor,
    probe: torch.Tensor | None,
    start: float,
    end: float,
    *,
    solver: str,
    rtol: float,
    atol: float,
    n_steps: int | None = None,
    on_evaluation: Callable[[int, float], None] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Integrate dx/dt = drift(x, t) together with its divergence.

    Args:
        drift: x float64 (B, ...) and t float64 (B,) to dx/dt, differentiable in x.
        start_state: (B, ...), at ``start``.
        probe, solver, rtol, atol, n_steps, on_evaluation: as in ode_log_likelihood.
        start, end: times, start < end.

    Returns:
        The state at ``end``, float64; the integral of the divergence, float64 (B,), which is the log density at
        ``start`` less that at ``end``; the number of right-hand sides evaluated.

    Raises:
        UsageError, RunFailed: as diffusion.ode.solve.
    """

    def right_hand_side(t: torch.Tensor, parts: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        with torch.enable_grad():
            x = parts[0].detach().requires_grad_()
            derivative = drift(x, t.expand(len(x)))
            divergence = (
                _exact_divergence(derivative, x) if probe is None else _estimate(derivative, x, probe.double())
            )
        return derivative.detach(), divergence

    (final_state, divergence), n_evaluations = solve(
        right_hand_side,
        (start_state, torch.zeros(len(start_state), dtype=torch.float64, device=start_state.device)),
        start,
        end,
        solver=solver,
        rtol=rtol,
        atol=atol,
        n_steps=n_steps,
        on_evaluation=on_evaluation,
    )
    return final_state, divergence, n_evaluations


def _estimate(drift: torch.Tensor, u: torch.Tensor, probe: torch.Tensor) -> torch.Tensor:
    """Hutchinson's estimate of the divergence, float64 (B,)."""
    (product,) = torch.autograd.grad(drift, u, probe)
    return (product * probe).flatten(1).sum(1)


def _exact_divergence(drift: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """The divergence, float64 (B,), one entry of a state at a time."""
    entries = drift.flatten(1)
    divergence = torch.zeros(len(u), dtype=torch.float64, device=u.device)
    for index in range(entries.shape[1]):
        (gradient,) = torch.autograd.grad(entries[:, index].sum(), u, retain_graph=True)
        divergence += gradient.flatten(1)[:, index]
    return divergence
