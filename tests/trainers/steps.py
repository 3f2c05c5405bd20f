"""A step of a method as the loop takes it."""

from __future__ import annotations

from typing import Any

import torch

from trainers.step import TrainingStep
from util.data.loader import MicroBatch
from util.distributed import Distributed


def take_step(
    method: Any, micro_batches: list[MicroBatch], distributed: Distributed | None = None
) -> dict[str, torch.Tensor]:
    """One step on one rank, by the options of the method's configuration."""
    run, training = method.config.run, method.config.training
    step = TrainingStep(
        method, distributed or Distributed(), seed=run.seed, cont_nbr=run.cont_nbr,
        total_batch_size=training.total_batch_size,
    )  # fmt: skip
    return step(micro_batches)
