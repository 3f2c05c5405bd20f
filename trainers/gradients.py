"""Gradients of an objective, summed over micro-batches and, while the backward pass still runs, over ranks.

DistributedDataParallel lays its buckets out anew when it has seen two backward passes, in the order in which gradients
came. A collective's rounding depends on where a number lies in its buffer, so with three ranks or more a resumed run
would differ from an undisturbed one in the last bits. Two passes that are thrown away before the first real one, in
both runs alike, make the buckets the same in each.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from util.distributed import Distributed

BUCKET_MEBIBYTES = 25
N_THROWN_AWAY = 2

Batch = TypeVar("Batch")
Aside = TypeVar("Aside")


class _Loss(nn.Module):
    """A loss as the forward pass of a module, which DistributedDataParallel wants. It has parameters and no buffers, so
    that no buffer is broadcast."""

    def __init__(self, loss_of: Callable[[Any], tuple[torch.Tensor, Any]], parameters: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.loss_of = loss_of
        self.trained = nn.ParameterList(parameters)

    def forward(self, batch: Any) -> tuple[torch.Tensor, Any]:
        return self.loss_of(batch)


class ObjectiveGradients(Generic[Batch, Aside]):
    """Makes the gradients of one objective, of one network or of several.

    Nothing is set up before the first call. On one rank there is no DistributedDataParallel.

    Args:
        loss_of: from a micro-batch its part of the objective, a scalar whose sum over micro-batches and ranks is the
            objective, and what else is wanted of it, without gradient. It may draw from streams in the micro-batch, use
            torch's generators and change buffers of ``networks``, and has no other effect.
        parameters: in an order that is the same on all ranks; those that are frozen at the first call are left out, and
            which of them get a gradient never changes.
        networks: all those whose buffers ``loss_of`` may change.
        distributed: gradients are summed over its ranks.
        compression: "none", or "bf16" to send bfloat16.
        bucket_mebibytes: gradients are sent in pieces of about this size, MiB.
    """

    def __init__(
        self,
        loss_of: Callable[[Batch], tuple[torch.Tensor, Aside]],
        parameters: Iterable[nn.Parameter],
        networks: Iterable[nn.Module],
        distributed: Distributed,
        compression: str = "none",
        bucket_mebibytes: float = BUCKET_MEBIBYTES,
    ) -> None:
        self.loss_of = loss_of
        self.parameters = list(parameters)
        self.networks = list(networks)
        self.distributed = distributed
        self.compression = compression
        self.bucket_mebibytes = bucket_mebibytes
        self._parallel: DistributedDataParallel | None = None

    def __call__(
        self, batches: Sequence[Batch], scaler: torch.amp.GradScaler | None = None
    ) -> tuple[torch.Tensor, list[Aside]]:
        """New gradients, in place of those of the last call.

        A parameter that no rank has a gradient for keeps ``grad=None``.

        Args:
            batches: this rank's micro-batches, as many as on the other ranks.
            scaler: loss scale.

        Returns:
            This rank's part of the objective, times the number of ranks: its mean over ranks is the objective. And what
            else ``loss_of`` has returned, for each micro-batch.
        """
        if self.distributed.world_size > 1 and self._parallel is None:
            self._parallel = self._set_up(batches[0])
        self._forget()
        parts, asides = [], []
        for number, batch in enumerate(batches, 1):
            with self._without_sum() if number < len(batches) else contextlib.nullcontext():
                loss, aside = (self._parallel or self.loss_of)(batch)
                (loss if scaler is None else scaler.scale(loss)).backward()
            parts.append(loss.detach())
            asides.append(aside)
        return sum(parts[1:], parts[0]) * self.distributed.world_size, asides

    def _without_sum(self) -> contextlib.AbstractContextManager[None]:
        return self._parallel.no_sync() if self._parallel is not None else contextlib.nullcontext()

    def _forget(self) -> None:
        """Drop the last gradients; those that lie in buckets stay there, as zeros."""
        if self._parallel is None:
            for parameter in self.parameters:
                parameter.grad = None
        elif present := [parameter.grad for parameter in self.parameters if parameter.grad is not None]:
            torch._foreach_zero_(present)

    def _set_up(self, batch: Batch) -> DistributedDataParallel:
        parallel = DistributedDataParallel(
            _Loss(self.loss_of, [parameter for parameter in self.parameters if parameter.requires_grad]),
            init_sync=False,  # weights are a function of the seed, or from one snapshot
            bucket_cap_mb=self.bucket_mebibytes,
            gradient_as_bucket_view=True,
            static_graph=True,
        )
        parallel.register_comm_hook(None, _sum_in_bfloat16 if self.compression == "bf16" else _sum)
        self._throw_away(parallel, batch)
        return parallel

    def _throw_away(self, parallel: DistributedDataParallel, batch: Batch) -> None:
        """Passes that leave no trace but the order of gradients in ``parallel``."""
        before = [{name: buffer.clone() for name, buffer in net.named_buffers()} for net in self.networks]
        device = self.distributed.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []), warnings.catch_warnings():
            # From then on gradients lie in the buckets, in the layout of their parameters.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            for _ in range(N_THROWN_AWAY):
                loss, _ = parallel(copy.deepcopy(batch))
                loss.backward()
        for network, values in zip(self.networks, before, strict=True):
            for name, buffer in network.named_buffers():
                buffer.copy_(values[name])


def _sum(_state: None, bucket):  # type: ignore[no-untyped-def]  # DistributedDataParallel refuses postponed annotations
    """The sum over ranks, where torch's own hook has the mean."""
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda future: future.value()[0])


def _sum_in_bfloat16(_state: None, bucket):  # type: ignore[no-untyped-def]
    gradients = bucket.buffer()
    compressed = gradients.bfloat16()
    done = dist.all_reduce(compressed, async_op=True).get_future()
    return done.then(lambda future: gradients.copy_(future.value()[0]))
