"""One training step of a flow and the diffusion of its latents, on one objective (Kim et al., arXiv 2205.13699)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch

from diffusion.continuous.importance import WeightedProcess
from diffusion.continuous.latent_loss import (
    WeightedTimes,
    end_log_density,
    latent_score_loss,
    reconstruction_residual,
    weighted_times,
)
from diffusion.continuous.process import ScoreFunction
from diffusion.continuous.soft_truncation import soft_truncated_time
from models.residual_flow import FlowNoise, FlowOutput, InvertibleFlow, draw_flow_noise
from trainers.gradients import GradientReducer
from trainers.update import Updater, backward
from util.distributed import Distributed
from util.noise import Noise

StepFunction = Literal["nll", "fid"]


@dataclass(frozen=True)
class Draws:
    """The random numbers of one batch.

    Attributes:
        noise: a stream with an entry for each sample.
        shared: a stream with a single entry, the same on all ranks and for all micro-batches of a step.
    """

    noise: Noise
    shared: Noise


@dataclass(frozen=True)
class JointObjective:
    """The bound on -log p(x) that flow and score network minimise together, or what stands for it.

    Attributes:
        process: diffusion of the latents.
        weighting: "likelihood" or "reweightedv2", of the score loss
            (``diffusion.continuous.latent_loss.weighted_times``).
        importance_sampling: draw times in proportion to the weight "likelihood".
        smallest_time: truncation of the diffusion's times.
        reduce_mean: divide everything by the number of data dimensions.
        reconstruction_loss: add what the truncation leaves out.
        weighs_length: as in ``weighted_times``.
        means_add_up: the objective of a step is the sum of the means of its micro-batches.
    """

    process: WeightedProcess
    weighting: str
    importance_sampling: bool
    smallest_time: float
    reduce_mean: bool
    reconstruction_loss: bool
    weighs_length: bool = True
    means_add_up: bool = False

    def score_loss(
        self,
        score: ScoreFunction,
        latents: torch.Tensor,
        draws: Draws,
        smallest_time: float,
        importance_sampling: bool,
    ) -> torch.Tensor:
        """The loss of the score network on latents (B, C, H, W), float64 (B,); differentiable in both."""
        noise, shape = draws.noise, latents.shape[1:]
        times: WeightedTimes = weighted_times(
            self.process,
            noise.uniform(dtype=torch.float64),
            smallest_time,
            weighting=self.weighting,
            importance_sampling=importance_sampling,
            weighs_length=self.weighs_length,
        )
        loss = latent_score_loss(self.process, score, latents, times, noise.normal(*shape).to(latents))
        if self.reconstruction_loss:
            perturbation = noise.normal(*shape).to(latents)
            loss = loss + reconstruction_residual(self.process, score, latents, smallest_time, perturbation)
        return loss / self._scale(latents)

    def terms(
        self,
        score: ScoreFunction,
        encoded: FlowOutput,
        draws: Draws,
        smallest_time: float,
        importance_sampling: bool,
    ) -> dict[str, torch.Tensor]:
        """What adds up to the objective: "score", "flow" and "prior", float64 (B,) each."""
        scale = self._scale(encoded.z)
        loss = self.score_loss(score, encoded.z, draws, smallest_time, importance_sampling)
        prior_noise = draws.noise.normal(*encoded.z.shape[1:]).to(encoded.z)
        return {
            "score": loss,
            "flow": -encoded.log_jacobian / scale,
            "prior": -end_log_density(self.process, encoded.z, prior_noise) / scale,
        }

    def _scale(self, latents: torch.Tensor) -> int:
        return latents[0].numel() if self.reduce_mean else 1


class JointStep:
    """Updates flow and score network once each.

    "nll" takes one step of both on the objective. "fid" takes a step of the flow on the objective with
    importance-sampled times, then one of the score network on latents of the new flow, with the weighting and the times
    of the options; with soft truncation, which then is only of that second loss, the latents are the old ones, and the
    score network's gradient of the first loss is added to that of the second, scaled by the quotient of the two.

    Args:
        objective: what is minimised.
        score: of the score network, in training.
        flow: the flow.
        score_updater, flow_updater: of the two networks.
        distributed: gradients are summed over its ranks.
        step_function: "nll" or "fid".
        soft_truncation: exponent of the random smallest time; None keeps it fixed.
        scaler: loss scale, of both networks.
    """

    def __init__(
        self,
        objective: JointObjective,
        score: ScoreFunction,
        flow: InvertibleFlow,
        score_updater: Updater,
        flow_updater: Updater,
        distributed: Distributed,
        *,
        step_function: StepFunction,
        soft_truncation: float | None,
        scaler: torch.amp.GradScaler | None,
    ) -> None:
        self.objective = objective
        self.score = score
        self.flow = flow
        self.score_updater = score_updater
        self.flow_updater = flow_updater
        self.distributed = distributed
        self.step_function = step_function
        self.soft_truncation = soft_truncation
        self.scaler = scaler
        self._score_parameters = [p for p in score_updater.network.parameters() if p.requires_grad]
        # The score network's gradient of the first loss of a "fid" step is wanted with soft truncation only.
        self._first_trains_score = step_function == "nll" or soft_truncation is not None
        of_the_score = self._score_parameters if self._first_trains_score else []
        self._reducer = GradientReducer(chain(of_the_score, flow_updater.network.parameters()), distributed)
        # Buffers for gradients are large: there are none where there is no second loss.
        self._second_reducer = GradientReducer(self._score_parameters, distributed) if step_function == "fid" else None

    def __call__(
        self, batches: Sequence[tuple[torch.Tensor, Draws]], step: int, total_batch_size: int
    ) -> dict[str, torch.Tensor]:
        """One step.

        Args:
            batches: this rank's micro-batches, data (B, C, H, W) and their random numbers.
            step: number of completed steps.
            total_batch_size: of all micro-batches of all ranks.

        Returns:
            ``loss``, its parts ``loss_score``, ``loss_flow`` (whose value is not a likelihood, only its gradient is
            right) and ``loss_prior``, all with the mean over ranks for value; ``gradient_norm`` and ``learning_rate``
            of the score network, ``gradient_norm_flow`` and ``learning_rate_flow``.
        """
        metrics = (self._nll if self.step_function == "nll" else self._fid)(batches, step, total_batch_size)
        if self.scaler is not None:
            self.scaler.update()
        return metrics

    def _nll(
        self, batches: Sequence[tuple[torch.Tensor, Draws]], step: int, total_batch_size: int
    ) -> dict[str, torch.Tensor]:
        sums = _Sums(self.distributed)

        def loss_of(x: torch.Tensor, draws: Draws) -> torch.Tensor:
            encoded = self._encode(x, draws)
            terms = self.objective.terms(
                self.score, encoded, draws, self._smallest_time(draws), self.objective.importance_sampling
            )
            sums.add(terms, self._share(batches, total_batch_size))
            return self._mean(sum(terms.values(), torch.zeros(())), batches, total_batch_size)

        loss = backward(_closures(loss_of, batches), self._reducer, self.scaler)
        return {
            "loss": loss,
            **sums.metrics(),
            **self.score_updater.apply(step, self.scaler),
            **_of_the_flow(self.flow_updater.apply(step, self.scaler)),
        }

    def _fid(
        self, batches: Sequence[tuple[torch.Tensor, Draws]], step: int, total_batch_size: int
    ) -> dict[str, torch.Tensor]:
        adds_first_gradient = self._first_trains_score
        assert self._second_reducer is not None
        sums, second_sums = _Sums(self.distributed), _Sums(self.distributed)
        old_latents: list[torch.Tensor] = []

        def first_loss(x: torch.Tensor, draws: Draws) -> torch.Tensor:
            encoded = self._encode(x, draws)
            old_latents.append(encoded.z.detach())
            smallest_time = self.objective.smallest_time
            terms = self.objective.terms(self.score, encoded, draws, smallest_time, importance_sampling=True)
            sums.add(terms, self._share(batches, total_batch_size))
            return self._mean(sum(terms.values(), torch.zeros(())), batches, total_batch_size)

        self._freeze_score(not adds_first_gradient)
        loss = backward(_closures(first_loss, batches), self._reducer, self.scaler)
        self._freeze_score(False)
        first_gradients = [p.grad for p in self._score_parameters]
        flow_metrics = _of_the_flow(self.flow_updater.apply(step, self.scaler))

        def second_loss(x: torch.Tensor, draws: Draws) -> torch.Tensor:
            latents = old_latents.pop(0) if adds_first_gradient else self._encode_again(x, draws)
            smallest_time, importance_sampling = self._smallest_time(draws), self.objective.importance_sampling
            losses = self.objective.score_loss(self.score, latents, draws, smallest_time, importance_sampling)
            second_sums.add({"score": losses}, self._share(batches, total_batch_size))
            return self._mean(losses, batches, total_batch_size)

        backward(_closures(second_loss, batches), self._second_reducer, self.scaler)
        if adds_first_gradient:
            factor = second_sums.over_ranks("score") / sums.over_ranks("score")
            for parameter, gradient in zip(self._score_parameters, first_gradients, strict=True):
                if parameter.grad is not None and gradient is not None:
                    parameter.grad += gradient * factor.to(gradient.dtype)
        return {
            "loss": loss,
            **sums.metrics(),
            "loss_score_second_pass": second_sums.metrics()["loss_score"],
            **self.score_updater.apply(step, self.scaler),
            **flow_metrics,
        }

    def _encode(self, x: torch.Tensor, draws: Draws) -> FlowOutput:
        flow_noise = draw_flow_noise(self.flow, draws.noise, draws.shared)
        return self.flow(x, flow_noise, log_determinant="surrogate")

    @torch.no_grad()
    def _encode_again(self, x: torch.Tensor, draws: Draws) -> torch.Tensor:
        """Latents alone, with a code of their own."""
        return latents_alone(self.flow, x, draws.noise)

    def _smallest_time(self, draws: Draws) -> float:
        if self.soft_truncation is None:
            return self.objective.smallest_time
        uniform = draws.shared.uniform(dtype=torch.float64)
        return soft_truncated_time(uniform, self.objective.smallest_time, self.soft_truncation).item()

    def _freeze_score(self, frozen: bool) -> None:
        """Without their own gradient the score network's parameters cost half the backward pass."""
        for parameter in self._score_parameters:
            parameter.requires_grad_(not frozen)

    def _share(self, batches: Sequence[tuple[torch.Tensor, Draws]], total_batch_size: int) -> float:
        """What each sample counts for in the objective."""
        n_means = len(batches) if self.objective.means_add_up else 1
        return n_means / total_batch_size

    def _mean(
        self, losses: torch.Tensor, batches: Sequence[tuple[torch.Tensor, Draws]], total_batch_size: int
    ) -> torch.Tensor:
        """A micro-batch's part of the objective, in the precision of the networks."""
        dtype = self._score_parameters[0].dtype
        return (losses.sum() * self._share(batches, total_batch_size)).to(dtype)


def latents_alone(flow: InvertibleFlow, x: torch.Tensor, noise: Noise) -> torch.Tensor:
    """Latents of x (B, C, H, W) without a log-determinant, which leaves the code as the only thing to draw."""
    n_blocks = len(flow.block_shapes)
    flow_noise = FlowNoise(noise.normal(flow.code_size), (x.new_empty(0),) * n_blocks, (0,) * n_blocks)
    return flow(x, flow_noise, log_determinant="none").z


class _Sums:
    """Running sums of the terms of an objective over this rank's micro-batches."""

    def __init__(self, distributed: Distributed) -> None:
        self.distributed = distributed
        self.values: dict[str, torch.Tensor] = {}

    def add(self, terms: dict[str, torch.Tensor], share: float) -> None:
        for name, term in terms.items():
            value = term.detach().sum() * share
            self.values[name] = self.values[name] + value if name in self.values else value

    def metrics(self) -> dict[str, torch.Tensor]:
        """With the mean over ranks for value."""
        return {f"loss_{name}": value * self.distributed.world_size for name, value in self.values.items()}

    def over_ranks(self, name: str) -> torch.Tensor:
        return self.distributed.sum(self.values[name].clone())


def _closures(
    loss_of: Callable[[torch.Tensor, Draws], torch.Tensor], batches: Sequence[tuple[torch.Tensor, Draws]]
) -> list[Callable[[], torch.Tensor]]:
    return [lambda x=x, draws=draws: loss_of(x, draws) for x, draws in batches]  # type: ignore[misc]


def _of_the_flow(metrics: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{name}_flow": value for name, value in metrics.items()}
