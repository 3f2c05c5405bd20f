"""What systems with a score network in continuous time share: calls in three precisions, solvers, likelihoods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import nn

from diffusion.continuous.likelihood import OdeLogLikelihood, ode_log_likelihood
from diffusion.continuous.process import LabelledProcess, Process, ScoreFunction
from diffusion.continuous.score import make_labelled_score
from diffusion.ode import Solver
from diffusion.tensors import expand
from trainers.options import LikelihoodOptions, OdeSamplingOptions, OptimizationOptions
from trainers.update import compiled, with_autocast
from util.noise import Noise

Function = TypeVar("Function")
Other = TypeVar("Other")
Network = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Precisions(Generic[Function]):
    """A function of a network as it is called in training, in sampling, and where every digit counts."""

    training: Function
    sampling: Function
    exact: Function

    def map(self, made_of: Callable[[Function], Other]) -> Precisions[Other]:
        """The same of something made of each."""
        return Precisions(made_of(self.training), made_of(self.sampling), made_of(self.exact))


def in_precisions(network: nn.Module, device: torch.device, options: OptimizationOptions) -> Precisions[Network]:
    """The network compiled and in mixed precision as the options say; likelihoods never are."""
    return Precisions(
        with_autocast(compiled(network, options), device, options, options.autocast_train),
        with_autocast(network, device, options, options.autocast_eval),
        with_autocast(network, device, options, enabled=False),
    )


def labelled_score(process: LabelledProcess, network: Network) -> ScoreFunction:
    """The score of a network that sees states and labels of time in float32."""

    def output(u: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        label = label.float()
        values = network(u.float(), label).float()
        # The label is sigma: over all of its range the network's own output stays of the order of 1.
        return values / expand(label, values) if process.output_is_score else values

    return make_labelled_score(process, output)


def sampling_solver(options: OdeSamplingOptions) -> Solver:
    """The solver that ``--sampling_*`` describe."""
    return Solver(
        options.sampling_solver, options.sampling_rtol, options.sampling_atol, options.sampling_n_steps or None
    )


def likelihood_solver(options: LikelihoodOptions) -> Solver:
    """The solver that ``--likelihood_*`` describe."""
    return Solver(
        options.likelihood_solver, options.likelihood_rtol, options.likelihood_atol, options.likelihood_n_steps or None
    )


def draw_probe(noise: Noise, shape: Sequence[int], options: LikelihoodOptions) -> torch.Tensor | None:
    """The trace estimator's probe, (B, *shape); None where the trace is computed."""
    draw = {"rademacher": noise.rademacher, "gaussian": noise.normal}.get(options.likelihood_hutchinson_type)
    return draw(*shape) if draw is not None else None


def flow_likelihood(
    process: Process,
    score: ScoreFunction,
    state: torch.Tensor,
    probe: torch.Tensor | None,
    smallest_time: float,
    options: LikelihoodOptions,
    heed: Callable[[], None],
) -> OdeLogLikelihood:
    """``ode_log_likelihood`` from ``smallest_time`` on, with the solver of the options."""
    return ode_log_likelihood(
        process, score, state, probe, start=smallest_time, solver=likelihood_solver(options),
        on_evaluation=lambda _number, _time: heed(),
    )  # fmt: skip


def rounded(number: float, dtype: torch.dtype) -> float:
    """A number to the precision of a dtype."""
    return torch.tensor(number, dtype=dtype).item()
