"""One optimiser update of one network, the same for every system."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from trainers.gradients import GradientReducer
from util.distributed import Distributed
from util.ema import ExponentialMovingAverage
from util.optimization import clip_gradients, make_optimizer, warmed_up_learning_rate
from util.options import OptimizationOptions

AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Updater:
    """Optimiser, average, loss scale and gradient exchange of one network.

    Args:
        network: on its device.
        options: learning rate, clipping, precision and so on.
        distributed: gradients are summed over its ranks.
    """

    def __init__(self, network: nn.Module, options: OptimizationOptions, distributed: Distributed) -> None:
        self.network = network
        self.options = options
        self.distributed = distributed
        self.optimizer = make_optimizer(
            options.optimizer, network.parameters(), options.learning_rate, options.weight_decay
        )
        self.ema = ExponentialMovingAverage(network.named_parameters(), options.ema_rate)
        self.reducer = GradientReducer(network.parameters(), distributed)
        loss_scaling = options.autocast_train and options.autocast_dtype == "fp16"
        self.scaler = torch.amp.GradScaler(distributed.device.type) if loss_scaling else None

    def step(self, losses: Sequence[Callable[[], torch.Tensor]], step: int) -> dict[str, torch.Tensor]:
        """Backward over micro-batches, sum over ranks, clip, warm up, update, average.

        Args:
            losses: one for each micro-batch; the sum over micro-batches and ranks is the objective.
            step: number of completed steps, which sets the learning rate.

        Returns:
            ``loss`` (times the number of ranks, so that its mean over ranks is the objective), ``gradient_norm``
            before clipping, ``learning_rate``.
        """
        self.optimizer.zero_grad()
        total = torch.zeros((), device=self.distributed.device)
        for index, loss_of in enumerate(losses):
            loss = loss_of()
            total = total + loss.detach()
            if index == len(losses) - 1:
                self.reducer.begin()
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        self.reducer.finish()

        learning_rate = warmed_up_learning_rate(self.options.learning_rate, self.options.n_warmup_iters, step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        limit = self.options.grad_clip or float("inf")
        gradient_norm = clip_gradients(self.network.parameters(), limit)
        if self.scaler is not None:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        self.ema.update()
        return {
            "loss": total * self.distributed.world_size,
            "gradient_norm": gradient_norm.detach(),
            "learning_rate": torch.tensor(learning_rate, dtype=torch.float64),
        }


def with_autocast(
    network: Callable[..., torch.Tensor], device: torch.device, options: OptimizationOptions, enabled: bool
) -> Callable[..., torch.Tensor]:
    """The network, called in mixed precision where ``enabled``."""

    def call(*inputs: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, AUTOCAST_TYPES[options.autocast_dtype], enabled=enabled):
            return network(*inputs)

    return call
