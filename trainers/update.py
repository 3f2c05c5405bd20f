"""Optimiser updates: what is done with the gradients of an objective. The same for every system."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from trainers.options import OptimizationOptions
from util.ema import ExponentialMovingAverage
from util.optimization import clip_gradients, make_optimizer, warmed_up_learning_rate

ADAM_BETA1 = 0.9
AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Updater:
    """How one network is updated.

    Attributes:
        network: on its device.
        optimizer: of its parameters.
        ema: of its parameters.
        learning_rate: from the number of completed steps.
        grad_clip: largest global gradient norm; 0 is no clipping.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    ema: ExponentialMovingAverage
    learning_rate: Callable[[int], float]
    grad_clip: float

    def apply(self, step: int, scaler: torch.amp.GradScaler | None = None) -> dict[str, torch.Tensor]:
        """Clip, set the learning rate, update, average.

        Args:
            step: number of completed steps.
            scaler: of the backward pass; the caller updates it after the last network.

        Returns:
            ``gradient_norm`` before clipping, ``learning_rate``.
        """
        learning_rate = self.learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        gradient_norm = clip_gradients(self.network.parameters(), self.grad_clip or float("inf"))
        if scaler is not None:
            scaler.step(self.optimizer)
        else:
            self.optimizer.step()
        self.ema.update()
        return {
            "gradient_norm": gradient_norm.detach(),
            "learning_rate": torch.tensor(learning_rate, dtype=torch.float64),
        }

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the block the network is in evaluation mode and has its averaged weights."""
        self.network.eval()
        try:
            with self.ema.average_weights():
                yield
        finally:
            self.network.train()


def make_updater(
    network: nn.Module, options: OptimizationOptions, learning_rate: float, ema_warm_up: bool = True
) -> Updater:
    """An updater of the whole network by the general options.

    Args:
        network: on its device.
        options: optimiser, clipping, average.
        learning_rate: after warm-up.
        ema_warm_up: see ``util.ema.ExponentialMovingAverage``.
    """
    return Updater(
        network,
        make_optimizer(
            options.optimizer,
            network.parameters(),
            learning_rate,
            options.weight_decay,
            betas=(ADAM_BETA1, options.adam_beta2),
        ),
        ExponentialMovingAverage(network.named_parameters(), options.ema_rate, ema_warm_up),
        partial(warmed_up_learning_rate, learning_rate, options.n_warmup_iters),
        options.grad_clip,
    )


def make_scaler(options: OptimizationOptions, device: torch.device) -> torch.amp.GradScaler | None:
    """The loss scale that float16 training needs, shared by all networks of a method; None without it."""
    needed = options.autocast_train and options.autocast_dtype == "fp16"
    return torch.amp.GradScaler(device.type) if needed else None


def compiled(network: nn.Module, options: OptimizationOptions) -> Callable[..., torch.Tensor]:
    """The network as training calls it, through ``torch.compile`` where the options want that."""
    return torch.compile(network) if options.compile else network


@contextmanager
def float32_arithmetic(tf32: bool) -> Iterator[None]:
    """Within, what a GPU makes of float32 in matrix products and convolutions: TF32, or float32 itself."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    _set_float32_arithmetic("high" if tf32 else "highest", tf32)
    try:
        yield
    finally:
        _set_float32_arithmetic(*before)


def _set_float32_arithmetic(products: str, convolutions: bool) -> None:
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions


def with_autocast(
    network: Callable[..., torch.Tensor], device: torch.device, options: OptimizationOptions, enabled: bool
) -> Callable[..., torch.Tensor]:
    """The network, called in mixed precision where ``enabled``."""

    def call(*inputs: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, AUTOCAST_TYPES[options.autocast_dtype], enabled=enabled):
            return network(*inputs)

    return call
