"""A step of a method as the loop takes it."""

from __future__ import annotations

from typing import Any

import torch

from trainers.options import TrainingOptions
from trainers.step import TrainingStep
from util.data.loader import MicroBatch
from util.distributed import Distributed
from util.run_options import RunOptions


def take_step(
    method: Any, micro_batches: list[MicroBatch], distributed: Distributed | None = None
) -> dict[str, torch.Tensor]:
    """One step on one rank, by the options of the method's configuration."""
    run, training = method.config[RunOptions], method.config[TrainingOptions]
    step = TrainingStep(
        method, distributed or Distributed(), seed=run.seed, cont_nbr=run.cont_nbr,
        total_batch_size=training.total_batch_size,
    )  # fmt: skip
    return step(micro_batches)
