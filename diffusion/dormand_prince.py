"""The Dormand-Prince pair of order 5(4) with the step control of SciPy's RK45, on tensors where they are.

Dormand and Prince, "A family of embedded Runge-Kutta formulae", J. Comput. Appl. Math. 6, 1980; step control and first
step of Hairer, Norsett and Wanner, "Solving Ordinary Differential Equations I", Section II.4.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import torch

_TIMES = (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1)
_STAGES = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
"""The last one is the solution of order 5, whose derivative is the first stage of the next step."""
_ERROR = (-71 / 57600, 0, 71 / 16695, -71 / 1920, 17253 / 339200, -22 / 525, 1 / 40)
"""Of all seven stages: the solution of order 4 less that of order 5."""

_EXPONENT = -1 / 5
_SAFETY, _LARGEST_FACTOR, _SMALLEST_FACTOR = 0.9, 10.0, 0.2
_SMALLEST_RTOL = 100 * sys.float_info.epsilon

Derivative = Callable[[float, torch.Tensor], torch.Tensor]


class NotSolved(Exception):
    """The integration cannot go on; the message says why."""


@torch.no_grad()
def integrate(
    derivative: Derivative, initial: torch.Tensor, start: float, end: float, *, rtol: float, atol: float
) -> torch.Tensor:
    """Integrate dy/dt = derivative(t, y) from ``start`` to ``end``, forwards or backwards.

    Evaluations, accepted and rejected steps are those of ``scipy.integrate.RK45``, as far as its rounding decides none
    of them. The device is waited for once a step, and twice for the first step's size.

    Args:
        derivative: time and state float64 (n,) to the derivative float64 (n,). It is not asked beyond ``end``.
        initial: float64 (n,), the state at ``start``.
        rtol, atol: the root mean square of local error / (atol + rtol * size of the state) stays below 1.

    Returns:
        The state at ``end``, float64 (n,).

    Raises:
        NotSolved: a derivative is not finite, or the step becomes too small for the precision of time.
    """
    direction = 1.0 if end >= start else -1.0
    rtol = max(rtol, _SMALLEST_RTOL)
    table = [row + (0,) * (7 - len(row)) for row in (*_STAGES, _ERROR)]
    weights = torch.tensor(table, dtype=initial.dtype, device=initial.device)
    stages = torch.empty((7, initial.numel()), dtype=initial.dtype, device=initial.device)
    t, y = start, initial
    stages[0] = derivative(t, y)
    step = _first_step(derivative, stages[0], y, start, end, rtol, atol)
    while t != end and len(y):
        smallest_step = 10 * abs(math.nextafter(t, direction * math.inf) - t)
        step, rejected = max(step, smallest_step), False
        while True:
            if not step >= smallest_step:
                raise NotSolved(f"the step at t = {t:g} became smaller than the spacing of numbers there")
            t_new = t + direction * step
            t_new = end if direction * (t_new - end) > 0 else t_new
            signed_step = t_new - t
            step = abs(signed_step)
            times = [t + fraction * signed_step for fraction in (*_TIMES[1:], 1)]
            times = [end if direction * (time - end) > 0 else time for time in times]
            for index, time in enumerate(times, start=1):
                y_new = torch.add(y, weights[index, :index] @ stages[:index], alpha=signed_step)
                stages[index] = derivative(time, y_new)
            scale = atol + torch.maximum(y.abs(), y_new.abs()) * rtol
            norm = _norm((weights[-1] @ stages) * signed_step / scale)
            error, *sums = torch.cat([norm[None], stages.sum(1)]).tolist()
            _check(sums, stages, [t, *times])
            factor = _LARGEST_FACTOR if error == 0 else _SAFETY * error**_EXPONENT
            if error < 1:
                step *= min(1.0 if rejected else _LARGEST_FACTOR, factor)
                break
            step *= max(_SMALLEST_FACTOR, factor)
            rejected = True
        t, y = t_new, y_new
        stages[0] = stages[-1]
    return y


def _first_step(
    derivative: Derivative, f: torch.Tensor, y: torch.Tensor, start: float, end: float, rtol: float, atol: float
) -> float:
    """Size of a first step, by one evaluation more: Hairer, Norsett and Wanner, p. 169.

    Args:
        f, y: derivative and state at ``start``.
    """
    length = abs(end - start)
    scale = atol + y.abs() * rtol
    size, slope, total = torch.stack([_norm(y / scale), _norm(f / scale), f.sum()]).tolist()
    _check([total], f[None], [start])
    if length == 0 or not len(y):
        return length
    step = min(1e-6 if size < 1e-5 or slope < 1e-5 else 0.01 * size / slope, length)
    signed_step = math.copysign(step, end - start)
    other = derivative(start + signed_step, y + signed_step * f)
    change, total = torch.stack([_norm((other - f) / scale), other.sum()]).tolist()
    _check([total], other[None], [start + signed_step])
    curvature = change / step if step > 0 else 0.0
    if max(slope, curvature) <= 1e-15:
        second = max(1e-6, step * 1e-3)
    else:
        second = (0.01 / max(slope, curvature)) ** -_EXPONENT
    return min(100 * step, second, length)


def _norm(vector: torch.Tensor) -> torch.Tensor:
    """Root mean square."""
    return torch.linalg.vector_norm(vector) / math.sqrt(vector.numel() or 1)


def _check(sums: list[float], stages: torch.Tensor, times: list[float]) -> None:
    """Raise NotSolved for the first derivative that is not finite, which its sum then is not either."""
    if all(map(math.isfinite, sums)):
        return
    for finite, time in zip(stages.isfinite().all(1).tolist(), times, strict=True):
        if not finite:
            raise NotSolved(f"the derivative at t = {time:g} is not finite")
