"""A density along an ordinary differential equation: the state, and the divergence of its drift."""

from collections.abc import Callable

import torch

from diffusion.ode import Solver, solve


def integrate_with_divergence(
    drift: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    start_state: torch.Tensor,
    probe: torch.Tensor | None,
    start: float,
    end: float,
    solver: Solver,
    on_evaluation: Callable[[int, float], None] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Integrate dx/dt = drift(x, t) together with its divergence.

    Args:
        drift: x float64 (B, ...) and t float64 (B,) to dx/dt, differentiable in x.
        start_state: (B, ...), at ``start``.
        probe: shape of the state, random with mean zero and unit covariance (signs or standard normals), fixed for the
            run; the estimate of the divergence is unbiased over probes (Hutchinson). None computes the divergence
            itself, at the cost of one vector-Jacobian product for each number of a state.
        start, end: times, start < end.
        solver, on_evaluation: as in diffusion.ode.solve.

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
        solver,
        on_evaluation,
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
