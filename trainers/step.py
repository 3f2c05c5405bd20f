"""One step of training, the same for every system: noise, micro-batches, gradients, updates, and the count."""

from __future__ import annotations

from functools import partial

import torch

from trainers.gradients import GradientReducer
from trainers.method import InitialisesFromData, Method, ReportsMore, TakesOwnSteps, Update
from trainers.update import backward
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
    """

    def __init__(
        self, method: Method, distributed: Distributed, *, seed: int, cont_nbr: int = 0, total_batch_size: int
    ) -> None:
        self.method = method
        self.seed = seed
        self.cont_nbr = cont_nbr
        self.total_batch_size = total_batch_size
        self._device = distributed.device
        self._reducers = {
            update.network: GradientReducer(method.updaters[update.network].network.parameters(), distributed)
            for update in method.updates
        }

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
            for update in method.updates:
                if update.due(step):
                    metrics |= self._take(update, micro_batches)
        method.state.step += 1
        return {**metrics, **method.report(metrics)} if isinstance(method, ReportsMore) else metrics

    def _noise(self, purpose: str, batch: MicroBatch) -> Noise:
        return Noise(
            self.seed, f"{purpose} {self.cont_nbr}", batch.positions, self.method.state.step, self._device
        )

    def _take(self, update: Update, micro_batches: list[MicroBatch]) -> dict[str, torch.Tensor]:
        """One update on the mean of its objective over the total batch."""

        def loss_of(batch: MicroBatch) -> torch.Tensor:
            losses = update.losses(batch, self._noise(update.purpose, batch))
            return (losses.sum() / self.total_batch_size).float()

        state = self.method.state
        losses = [partial(loss_of, batch) for batch in micro_batches]
        loss = backward(losses, self._reducers[update.network], state.scaler)
        metrics = {"loss": loss, **self.method.updaters[update.network].apply(state.step, state.scaler)}
        if state.scaler is not None:
            state.scaler.update()
        return {f"{update.prefix}{name}": value for name, value in metrics.items()}
