"""The process group behind one small object that also exists for a single process.

Nothing else in the project asks whether a group is initialised. Control messages (flags, names, chunk lists) go
over a CPU group; tensors of the model go over the device's group.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from util.errors import UsageError

T = TypeVar("T")


@dataclass
class Distributed:
    """This process's place among the ranks of the run.

    Attributes:
        rank: 0 to world_size - 1 over all nodes.
        local_rank: rank within this node.
        world_size: number of ranks.
        device: the device of this rank.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    control: Any = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def broadcast(self, value: Any) -> Any:
        """A small picklable value of rank 0, given to every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def from_main(self, compute: Callable[[], T]) -> T:
        """What ``compute`` returns on rank 0, small and picklable, on every rank; so is its UsageError."""
        value: Any = None
        message = None
        if self.is_main:
            try:
                value = compute()
            except UsageError as error:
                message = str(error)
        value, message = self.broadcast((value, message))
        if message is not None:
            raise UsageError(message)
        return value

    def gather(self, value: Any) -> list[Any]:
        """A small picklable value from every rank, in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def barrier(self) -> None:
        """Return when every rank has come here."""
        if self.world_size > 1:
            dist.all_reduce(torch.zeros(1), group=self.control)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, in place, on the device group."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def start_maximum(self, tensor: torch.Tensor) -> Any:
        """Begin an element-wise maximum over ranks of a CPU tensor; ``wait()`` on the result ends it."""
        if self.world_size == 1:
            return None
        return dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.control, async_op=True)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on at least one rank."""
        if self.world_size == 1:
            return flag
        tensor = torch.tensor([int(flag)])
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self.control)
        return bool(tensor.item())


def join_group(
    rank: int,
    local_rank: int,
    world_size: int,
    device: torch.device,
    timeout_seconds: float,
    store: dist.Store | None = None,
    *,
    shares_device: bool = False,
) -> Distributed:
    """Join the process group that meets at ``store``, or that the environment names (torchrun).

    NCCL where the device is a GPU that no other rank has, gloo otherwise, and a gloo group for control messages.
    """
    if world_size == 1:
        return Distributed(device=device)
    timeout = timedelta(seconds=timeout_seconds)
    # NCCL refuses two ranks on one device.
    backend = "nccl" if device.type == "cuda" and not shares_device else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    control = dist.new_group(backend="gloo", timeout=timeout) if backend == "nccl" else dist.group.WORLD
    return Distributed(rank, local_rank, world_size, device, control)
