"""Gradients summed over ranks while the backward pass still runs.

Buckets are laid out once, from the parameters' order alone. A collective's rounding depends on where a number lies in
its buffer, and DistributedDataParallel lays its buckets out anew after the first step it sees: with three ranks or
more a resumed run would then differ from an undisturbed one in the last bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from util.distributed import Distributed

BUCKET_BYTES = 25 * 1024 * 1024


class _Bucket:
    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.buffer = torch.zeros(
            sum(parameter.numel() for parameter in parameters), dtype=parameters[0].dtype, device=parameters[0].device
        )
        flat = self.buffer.split([parameter.numel() for parameter in parameters])
        self.views = [view.view(parameter.shape) for view, parameter in zip(flat, parameters, strict=True)]
        self.n_waiting = len(parameters)
        self.work: Any = None


class GradientReducer:
    """Sums the gradients of one network, or of several with one objective, over all ranks.

    Call ``begin`` before the backward pass of a step's last micro-batch and ``finish`` after it. A parameter that had
    no gradient on this rank counts as zero and keeps ``grad=None``.

    Args:
        parameters: in an order that is the same on all ranks; frozen ones are left out.
        distributed: with a single rank nothing is done.
        bucket_bytes: gradients are sent in pieces of about this size.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], distributed: Distributed, bucket_bytes: int = BUCKET_BYTES
    ) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.world_size = distributed.world_size
        self.buckets: list[_Bucket] = []
        self.active = False
        self.next_bucket = 0
        if distributed.world_size == 1:
            return
        waiting: list[nn.Parameter] = []
        # The backward pass ends with the first parameters, so the last ones are ready to be sent first.
        for parameter in reversed(self.parameters):
            if waiting and parameter.dtype != waiting[0].dtype:
                self._add_bucket(waiting)
                waiting = []
            waiting.append(parameter)
            if sum(entry.numel() * entry.element_size() for entry in waiting) >= bucket_bytes:
                self._add_bucket(waiting)
                waiting = []
        if waiting:
            self._add_bucket(waiting)

    def _add_bucket(self, parameters: list[nn.Parameter]) -> None:
        bucket = _Bucket(parameters)
        self.buckets.append(bucket)

        def ready(_parameter: torch.Tensor) -> None:
            if self.active:
                bucket.n_waiting -= 1
                self._send_ready()

        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(ready)

    def zero_gradients(self) -> None:
        """Forget the gradients of the last backward pass."""
        for parameter in self.parameters:
            parameter.grad = None

    def begin(self) -> None:
        """From here on gradients are sent as soon as they are complete."""
        self.active = bool(self.buckets)
        self.next_bucket = 0
        for bucket in self.buckets:
            bucket.n_waiting = len(bucket.parameters)

    def _send_ready(self) -> None:
        # Always in the buckets' order: ranks must not disagree about which collective comes next.
        while self.next_bucket < len(self.buckets) and self.buckets[self.next_bucket].n_waiting == 0:
            self._send(self.buckets[self.next_bucket])
            self.next_bucket += 1

    def _send(self, bucket: _Bucket) -> None:
        pairs = [
            (view, parameter.grad)
            for view, parameter in zip(bucket.views, bucket.parameters, strict=True)
            if parameter.grad is not None
        ]
        if len(pairs) < len(bucket.parameters):
            bucket.buffer.zero_()
        if pairs:
            torch._foreach_copy_([view for view, _ in pairs], [gradient for _, gradient in pairs])
        bucket.work = dist.all_reduce(bucket.buffer, async_op=True)

    def finish(self) -> None:
        """Send what is left, wait, and put the sums into the parameters' gradients."""
        if not self.active:
            return
        self.active = False
        for bucket in self.buckets[self.next_bucket :]:
            self._send(bucket)
        for bucket in self.buckets:
            bucket.work.wait()
            bucket.work = None
            pairs = [
                (parameter.grad, view)
                for view, parameter in zip(bucket.views, bucket.parameters, strict=True)
                if parameter.grad is not None
            ]
            if pairs:
                torch._foreach_copy_([gradient for gradient, _ in pairs], [view for _, view in pairs])
