"""The same initial value problem solved by SciPy's RK45, on the host: what ``diffusion.ode`` is compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.integrate import RK45

State = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Solution:
    """What SciPy made of it.

    Attributes:
        state: float64, at the end, or where it failed.
        n_evaluations: of the right-hand side.
        times: of all evaluations.
        n_steps: accepted ones.
        message: why it failed; empty if it did not.
    """

    state: State
    n_evaluations: int
    times: list[float]
    n_steps: int
    message: str


@torch.no_grad()
def solve_by_scipy(
    right_hand_side: Callable[[torch.Tensor, State], State],
    state: State,
    start: float,
    end: float,
    *,
    rtol: float,
    atol: float,
) -> Solution:
    """Arguments as of ``diffusion.ode.solve``."""
    device, sizes, times = state[0].device, [part.numel() for part in state], []

    def unflatten(vector: np.ndarray) -> State:
        parts = torch.from_numpy(vector).to(device).split(sizes)
        return tuple(part.reshape(whole.shape) for part, whole in zip(parts, state, strict=True))

    def derivative(t: float, vector: np.ndarray) -> np.ndarray:
        times.append(float(t))
        parts = right_hand_side(torch.tensor(t, dtype=torch.float64, device=device), unflatten(vector))
        return torch.cat([part.reshape(-1).double() for part in parts]).cpu().numpy()

    initial = torch.cat([part.reshape(-1).double() for part in state]).cpu().numpy()
    stepper = RK45(derivative, start, initial, end, rtol=rtol, atol=atol)
    n_steps, message = 0, None
    while stepper.status == "running":
        message = stepper.step()
        n_steps += stepper.status != "failed"
    return Solution(unflatten(stepper.y), stepper.nfev, times, n_steps, message or "")
