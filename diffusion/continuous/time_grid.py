"""Time grids of the samplers with a fixed number of steps."""

import torch

from util.errors import UsageError

STRIDINGS = ("linear", "quadratic")


def reversed_time_grid(n_steps: int, end: float, striding: str) -> torch.Tensor:
    """Reversed times tau_0 = 0 to tau_n = end, float64 (n_steps + 1,) on the CPU.

    Args:
        n_steps: at least 1.
        striding: "linear", equal steps, or "quadratic", steps that shrink linearly towards the data:
            tau_i = end (1 - ((n - i) / n)^2) (Dockhorn et al., arXiv 2112.07068, Section 5).

    Raises:
        UsageError: if there is no step to take, or no such striding.
    """
    if n_steps < 1:
        raise UsageError(f"{n_steps} sampling steps: choose enough network evaluations for at least one step")
    remaining = torch.arange(n_steps, -1, -1, dtype=torch.float64) / n_steps
    if striding == "linear":
        return end * (1 - remaining)
    if striding == "quadratic":
        return end * (1 - remaining**2)
    raise UsageError(f"striding {striding!r} is unknown: choose {' or '.join(STRIDINGS)}")
