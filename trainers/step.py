"""One step of training, the same for every system: noise, micro-batches, gradients, updates, and the count."""

from __future__ import annotations

from collections.abc import Callable

import torch

from trainers.gradients import ObjectiveGradients
from trainers.method import InitialisesFromData, Method, ReportsMore, TakesOwnSteps, Update
from util.data.loader import MicroBatch
from util.distributed import Distributed
from util.noise import Noise


class TrainingStep:
    """Takes the steps of a method.

    Args:
        method: whose networks are trained; ``method.state`` carries the step.
        distributed: gradients are summed over its ranks.
        seed: of all noise.
        cont_nbr: number of the continuation, which has noise of its own.
        total_batch_size: samples of one step over all ranks.
        gradient_compression: as in ``trainers.gradients``.
    """

    def __init__(
        self,
        method: Method,
        distributed: Distributed,
        *,
        seed: int,
        cont_nbr: int = 0,
        total_batch_size: int,
        gradient_compression: str = "none",
    ) -> None:
        self.method = method
        self.seed = seed
        self.cont_nbr = cont_nbr
        self.total_batch_size = total_batch_size
        self._device = distributed.device
        self._gradients = [
            ObjectiveGradients(
                self._loss_of(update),
                method.updaters[update.network].network.parameters(),
                method.state.networks.values(),
                distributed,
                gradient_compression,
            )
            for update in method.updates
        ]

    def __call__(self, micro_batches: list[MicroBatch]) -> dict[str, torch.Tensor]:
        """One step on this rank's micro-batches, after which ``state.step`` is one more.

        Returns:
            Scalars to log: ``loss``, whose mean over ranks is the objective, ``gradient_norm``, ``learning_rate``, each
            with the prefix of its update, and what the method adds.
        """
        method, step = self.method, self.method.state.step
        if step == 0 and isinstance(method, InitialisesFromData):
            method.initialise(micro_batches)
        if isinstance(method, TakesOwnSteps):
            metrics = method.take_step([(batch, self._noise("train", batch)) for batch in micro_batches])
        else:
            metrics = {}
            for update, gradients in zip(method.updates, self._gradients, strict=True):
                if update.due(step):
                    metrics |= self._take(update, gradients, micro_batches)
        method.state.step += 1
        return {**metrics, **method.report(metrics)} if isinstance(method, ReportsMore) else metrics

    def _noise(self, purpose: str, batch: MicroBatch) -> Noise:
        return Noise(self.seed, f"{purpose} {self.cont_nbr}", batch.positions, self.method.state.step, self._device)

    def _loss_of(self, update: Update) -> Callable[[MicroBatch], tuple[torch.Tensor, None]]:
        """A micro-batch's part of the mean of the objective over the total batch."""

        def loss_of(batch: MicroBatch) -> tuple[torch.Tensor, None]:
            losses = update.losses(batch, self._noise(update.purpose, batch))
            return (losses.sum() / self.total_batch_size).float(), None

        return loss_of

    def _take(
        self, update: Update, gradients: ObjectiveGradients[MicroBatch, None], micro_batches: list[MicroBatch]
    ) -> dict[str, torch.Tensor]:
        """One update on the mean of its objective over the total batch."""
        state = self.method.state
        loss, _ = gradients(micro_batches, state.scaler)
        metrics = {"loss": loss, **self.method.updaters[update.network].apply(state.step, state.scaler)}
        if state.scaler is not None:
            state.scaler.update()
        return {f"{update.prefix}{name}": value for name, value in metrics.items()}
