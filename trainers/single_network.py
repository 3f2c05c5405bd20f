"""The training of a method that changes one network only."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from trainers.gradients import GradientReducer
from trainers.state import TrainingState
from trainers.update import Updater, make_scaler, update
from util.config import Config
from util.data.loader import MicroBatch
from util.distributed import Distributed
from util.noise import Noise

LossesOf = Callable[[MicroBatch, Noise], torch.Tensor]
"""The objective for each sample of a micro-batch, (B,), from a stream of noise with an entry for each."""


class SingleNetwork:
    """How the network is called in training, what a snapshot holds of it, and a step of it.

    Args:
        name: of the network in snapshots.
        updater: of the network.
        config: checked.
        distributed: gradients are summed over its ranks.
    """

    def __init__(self, name: str, updater: Updater, config: Config, distributed: Distributed) -> None:
        options = config.optimization
        self.config = config
        self.updater = updater
        self.state = TrainingState(
            networks={name: updater.network},
            emas={name: updater.ema},
            optimizers={name: updater.optimizer},
            scaler=make_scaler(options, distributed.device),
        )
        self.network: Callable[..., torch.Tensor] = updater.network
        if options.compile:
            self.network = torch.compile(updater.network)
        self._device = distributed.device
        self._reducer = GradientReducer(updater.network.parameters(), distributed)

    def step(
        self, micro_batches: list[MicroBatch], losses_of: LossesOf, purpose: str = "train"
    ) -> dict[str, torch.Tensor]:
        """One update on the mean of the objective over the total batch, after which ``state.step`` is one more.

        Args:
            micro_batches: this rank's share.
            losses_of: the objective.
            purpose: of the noise.

        Returns:
            ``loss``, ``gradient_norm``, ``learning_rate``, as ``trainers.update.update``.
        """
        run, step = self.config.run, self.state.step

        def loss_of(batch: MicroBatch) -> torch.Tensor:
            noise = Noise(run.seed, f"{purpose} {run.cont_nbr}", batch.positions, step, self._device)
            return (losses_of(batch, noise).sum() / self.config.training.total_batch_size).float()

        losses = [partial(loss_of, batch) for batch in micro_batches]
        metrics = update(losses, self.updater, self._reducer, step, self.state.scaler)
        self.state.step += 1
        return metrics
