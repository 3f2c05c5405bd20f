"""``python -m benchmarks.likelihood``: the ODE of likelihoods solved on tensors, against SciPy's RK45 on the host.

Both solve from the same states in turns, so that whatever else the machine does falls on both: right-hand sides (NFE)
at tolerances of 1e-4, greatest difference of their ends, median seconds, and median and spread of the ratio. "solver
alone" has next to nothing to evaluate, and shows what the solvers themselves cost.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from diffusion.continuous.processes import make_process
from diffusion.continuous.reverse import probability_flow_drift
from diffusion.continuous.score import make_score
from diffusion.ode import Solver, State, solve
from models.ncsnpp import NCSNpp
from models.ncsnpp_settings import NCSNppSettings
from tests.diffusion.by_scipy import solve_by_scipy
from trainers.cld.options import CldOptions

RightHandSide = Callable[[torch.Tensor, State], State]


def flow_and_divergence(state: torch.Tensor) -> RightHandSide:
    """The probability flow of CLD with a small network that is as it was initialised, and Hutchinson's estimate."""
    process = make_process("cld", CldOptions())
    network = NCSNpp(
        NCSNppSettings(2, 1, 8, n_channels=16, ch_mult=(1, 2), n_resblocks=1, attn_resolutions=(4,), fourier_scale=1.0)
    ).to(state.device)
    network.requires_grad_(False)
    score = make_score(process, lambda u, label: network(u.float(), label.float()), mixed=True)
    probe = torch.randn_like(state)

    def right_hand_side(t: torch.Tensor, parts: State) -> State:
        with torch.enable_grad():
            u, times = parts[0].detach().requires_grad_(), t.expand(len(state))
            drift = -probability_flow_drift(process, score(u, times), u, 1 - times)
            (product,) = torch.autograd.grad(drift, u, probe)
        return drift.detach(), (product * probe).flatten(1).sum(1)

    return right_hand_side


def rotation(t: torch.Tensor, parts: State) -> State:
    return torch.cos(20 * t) * parts[0], parts[1] - t


def timed(work: Callable[[], tuple[State, int]]) -> tuple[float, State, int]:
    began = time.perf_counter()
    state, n_evaluations = work()
    if state[0].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began, state, n_evaluations


def compare(name: str, right_hand_side: RightHandSide, state: torch.Tensor, n_repeats: int) -> str:
    """One row of the table."""
    initial = (state, torch.zeros(len(state), dtype=torch.float64, device=state.device))
    problem = (right_hand_side, initial, 1e-3, 1.0)

    def by_scipy() -> tuple[State, int]:
        solution = solve_by_scipy(*problem, rtol=1e-4, atol=1e-4)
        return solution.state, solution.n_evaluations

    variants = (by_scipy, partial(solve, *problem, Solver("RK45", 1e-4, 1e-4)))
    for work in variants:
        work()
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(n_repeats):
        results = [timed(work) for work in variants]
        for taken, (needed, _, _) in zip(seconds, results, strict=True):
            taken.append(needed)
    (_, theirs, their_number), (_, ours, our_number) = results
    difference = max(float((part - other).abs().max()) for part, other in zip(ours, theirs, strict=True))
    ratios = sorted(mine / other for other, mine in zip(*seconds, strict=True))
    medians = [statistics.median(taken) for taken in seconds]
    return (
        f"{name:<28}{their_number:>6}{our_number:>6}{difference:>12.1e}{medians[0]:>10.3f}{medians[1]:>8.3f}"
        f"{statistics.median(ratios):>8.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.likelihood", description=__doc__)
    parser.add_argument("--batch_size", type=int, default=8, help="samples of a chunk")
    parser.add_argument("--n_repeats", type=int, default=5, help="solutions timed of each kind")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args()
    torch.manual_seed(0)
    device, size = torch.device(options.device), options.batch_size

    def state(*shape: int) -> torch.Tensor:
        return torch.randn(size, *shape, dtype=torch.float64).to(device)

    print(f"batch {size}, {device}, {torch.get_num_threads()} threads; NFE and seconds: SciPy's, then ours, ratio")
    small = state(2, 8, 8)
    print(compare("CLD, 8x8, NCSN++", flow_and_divergence(small), small, options.n_repeats), flush=True)
    for side in (8, 32, 64):
        channels = 2 if side == 8 else 6
        print(
            compare(f"solver alone, {channels}x{side}x{side}", rotation, state(channels, side, side), options.n_repeats)
        )


if __name__ == "__main__":
    main()
