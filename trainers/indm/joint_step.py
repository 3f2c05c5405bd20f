"""One training step of a flow and the diffusion of its latents, on one objective (Kim et al., arXiv 2205.13699)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
from trainers.gradients import ObjectiveGradients
from trainers.update import Updater
from util.distributed import Distributed
from util.noise import Noise

StepFunction = Literal["nll", "fid"]
Terms = dict[str, torch.Tensor]


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
        gradient_compression: as in ``trainers.gradients``.
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
        gradient_compression: str = "none",
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
        networks = (flow, score_updater.network)
        self._first = ObjectiveGradients(
            self._first_loss,
            (*of_the_score, *flow.parameters()),
            networks,
            distributed,
            gradient_compression,
        )
        self._second = ObjectiveGradients(
            self._second_loss, self._score_parameters, networks, distributed, gradient_compression
        )

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
        share = self._share(batches, total_batch_size)
        metrics = (self._nll if self.step_function == "nll" else self._fid)(batches, step, share)
        if self.scaler is not None:
            self.scaler.update()
        return metrics

    def _nll(self, batches: Sequence[tuple[torch.Tensor, Draws]], step: int, share: float) -> dict[str, torch.Tensor]:
        loss, asides = self._first([(x, draws, share) for x, draws in batches], self.scaler)
        sums = _added([terms for terms, _ in asides], share)
        return {
            "loss": loss,
            **self._metrics(sums),
            **self.score_updater.apply(step, self.scaler),
            **_of_the_flow(self.flow_updater.apply(step, self.scaler)),
        }

    def _fid(self, batches: Sequence[tuple[torch.Tensor, Draws]], step: int, share: float) -> dict[str, torch.Tensor]:
        adds_first_gradient = self._first_trains_score
        self._freeze_score(not adds_first_gradient)
        loss, asides = self._first([(x, draws, share) for x, draws in batches], self.scaler)
        self._freeze_score(False)
        sums = _added([terms for terms, _ in asides], share)
        first_gradients = self._take_score_gradients()
        flow_metrics = _of_the_flow(self.flow_updater.apply(step, self.scaler))

        old_latents = [latents if adds_first_gradient else None for _, latents in asides]
        second = [(x, draws, share, latents) for (x, draws), latents in zip(batches, old_latents, strict=True)]
        _, second_asides = self._second(second, self.scaler)
        second_sums = _added(second_asides, share)
        if adds_first_gradient:
            factor = self._over_ranks(second_sums["score"]) / self._over_ranks(sums["score"])
            for parameter, gradient in zip(self._score_parameters, first_gradients, strict=True):
                if parameter.grad is not None and gradient is not None:
                    parameter.grad += gradient * factor.to(gradient.dtype)
        return {
            "loss": loss,
            **self._metrics(sums),
            "loss_score_second_pass": self._metrics(second_sums)["loss_score"],
            **self.score_updater.apply(step, self.scaler),
            **flow_metrics,
        }

    def _first_loss(self, batch: tuple[torch.Tensor, Draws, float]) -> tuple[torch.Tensor, tuple[Terms, torch.Tensor]]:
        """A micro-batch's part of the objective of both networks; its terms, and the latents."""
        x, draws, share = batch
        encoded = self._encode(x, draws)
        if self.step_function == "nll":
            smallest_time, importance_sampling = self._smallest_time(draws), self.objective.importance_sampling
        else:
            smallest_time, importance_sampling = self.objective.smallest_time, True
        terms = self.objective.terms(self.score, encoded, draws, smallest_time, importance_sampling)
        return self._part(sum(terms.values(), torch.zeros(())), share), (_detached(terms), encoded.z.detach())

    def _second_loss(self, batch: tuple[torch.Tensor, Draws, float, torch.Tensor | None]) -> tuple[torch.Tensor, Terms]:
        """A micro-batch's part of the score network's second loss, on the given latents or those of the new flow."""
        x, draws, share, latents = batch
        if latents is None:
            latents = self._encode_again(x, draws)
        smallest_time, importance_sampling = self._smallest_time(draws), self.objective.importance_sampling
        losses = self.objective.score_loss(self.score, latents, draws, smallest_time, importance_sampling)
        return self._part(losses, share), _detached({"score": losses})

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

    def _part(self, losses: torch.Tensor, share: float) -> torch.Tensor:
        """A micro-batch's part of the objective, in the precision of the networks."""
        return (losses.sum() * share).to(self._score_parameters[0].dtype)

    def _take_score_gradients(self) -> list[torch.Tensor | None]:
        """The score network's gradients, which the next pass then leaves alone."""
        gradients = [parameter.grad for parameter in self._score_parameters]
        for parameter in self._score_parameters:
            parameter.grad = None
        return gradients

    def _metrics(self, sums: Terms) -> dict[str, torch.Tensor]:
        """With the mean over ranks for value."""
        return {f"loss_{name}": value * self.distributed.world_size for name, value in sums.items()}

    def _over_ranks(self, value: torch.Tensor) -> torch.Tensor:
        return self.distributed.sum(value.clone())


def latents_alone(flow: InvertibleFlow, x: torch.Tensor, noise: Noise) -> torch.Tensor:
    """Latents of x (B, C, H, W) without a log-determinant, which leaves the code as the only thing to draw."""
    n_blocks = len(flow.block_shapes)
    flow_noise = FlowNoise(noise.normal(flow.code_size), (x.new_empty(0),) * n_blocks, (0,) * n_blocks)
    return flow(x, flow_noise, log_determinant="none").z


def _detached(terms: Terms) -> Terms:
    return {name: term.detach() for name, term in terms.items()}


def _added(terms: Sequence[Terms], share: float) -> Terms:
    """The part of this rank's micro-batches in each term of the objective."""
    values = {name: [entry[name].sum() * share for entry in terms] for name in terms[0]}
    return {name: sum(parts[1:], parts[0]) for name, parts in values.items()}


def _of_the_flow(metrics: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{name}_flow": value for name, value in metrics.items()}
