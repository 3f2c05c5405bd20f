"""Losses of a method that trains one network, in training and in validation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

from trainers.score_model import Precisions
from trainers.update import Updater
from util.data.loader import MicroBatch
from util.noise import Noise


class OneNetwork(ABC):
    """A method whose losses are a function of what its one network stands for, in whatever precision that is called.

    Attributes:
        precisions: the score, the predicted noise or the velocity that the network stands for.
        updater: of the network.
    """

    precisions: Precisions[Any]
    updater: Updater

    @abstractmethod
    def losses(self, function: Any, batch: torch.Tensor, noise: Noise) -> torch.Tensor:
        """The objective for each sample of a batch, float64 (B,), with one of ``precisions``."""

    def training_losses(self, batch: MicroBatch, noise: Noise) -> torch.Tensor:
        """The objective for each sample of a micro-batch, float64 (B,)."""
        return self.losses(self.precisions.training, batch.data, noise)

    def validation_loss(self, batch: torch.Tensor, noise: Noise) -> torch.Tensor:
        """The training objective with the averaged weights, float64 (B,)."""
        with self.updater.averaged(), torch.no_grad():
            return self.losses(self.precisions.sampling, batch, noise)
