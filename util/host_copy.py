"""Copies of tensors in host memory that is taken once and used again for every copy."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Any, cast

import torch

_ALIGNMENT = 64


class HostCopy:
    """Copies nested containers of tensors to the host, each time into the same memory.

    Most of the time of a copy into fresh memory goes into getting that memory page by page. Here it is there already;
    it is pinned for tensors of a GPU, from which the copy then runs beside the host.
    """

    def __init__(self) -> None:
        self._memory = memoryview(b"")
        self._stream: torch.cuda.Stream | None = None
        self._arrived: torch.cuda.Event | None = None

    def reserve(self, value: Any) -> None:
        """Take the memory that a copy of ``value`` needs, if there is less so far. No copy may be in use."""
        originals = list(_tensors(value))
        size = sum(map(_room, originals))
        if size <= len(self._memory):
            return
        self._memory = memoryview(b"")
        if any(tensor.is_cuda for tensor in originals):
            pinned = torch.empty(size, dtype=torch.uint8, pin_memory=True)
            self._memory = memoryview(cast(Any, pinned.numpy()))
            return
        memory = mmap.mmap(-1, size)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        torch.frombuffer(memory, dtype=torch.uint8).zero_()  # a page is there once it has been written
        self._memory = memoryview(memory)

    @torch.no_grad()
    def __call__(self, value: Any) -> Any:
        """The same containers with copies of all tensors, which are valid until the next call.

        Of tensors on a GPU the values are there after ``wait``; what the GPU does from here on does not change them.
        """
        self.reserve(value)
        originals = list(_tensors(value))
        copies, position = [], 0
        for tensor in originals:
            copies.append(self._place(tensor, position))
            position += _room(tensor)
        device = next((tensor.device for tensor in originals if tensor.is_cuda), None)
        if device is None:
            for copy, tensor in zip(copies, originals, strict=True):
                copy.copy_(tensor)
        else:
            self._copy_beside(copies, originals, device)
        return _with_tensors(value, iter(copies))

    def wait(self) -> None:
        """Return when the values of the last copy are there."""
        if self._arrived is not None:
            self._arrived.synchronize()

    def _place(self, tensor: torch.Tensor, position: int) -> torch.Tensor:
        """Room for a tensor, laid out like it, with a storage of its own: ``torch.save`` writes whole storages."""
        if not tensor.numel():
            return torch.empty_like(tensor, device="cpu")
        layout = torch.empty_like(tensor, device="meta")
        flat = torch.frombuffer(self._memory, dtype=tensor.dtype, count=tensor.numel(), offset=position)
        return flat.as_strided(layout.shape, layout.stride())

    def _copy_beside(self, copies: list[torch.Tensor], originals: list[torch.Tensor], device: torch.device) -> None:
        self._stream = self._stream or torch.cuda.Stream(device)
        current = torch.cuda.current_stream(device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for copy, tensor in zip(copies, originals, strict=True):
                copy.copy_(tensor, non_blocking=True)
        # The next update changes the originals.
        current.wait_stream(self._stream)
        self._arrived = self._stream.record_event()


def _room(tensor: torch.Tensor) -> int:
    """Bytes."""
    return -(-tensor.numel() * tensor.element_size() // _ALIGNMENT) * _ALIGNMENT


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value.detach()
    elif isinstance(value, dict):
        for entry in value.values():
            yield from _tensors(entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _tensors(entry)


def _with_tensors(value: Any, tensors: Iterator[torch.Tensor]) -> Any:
    """The containers of ``value`` with other tensors, in the order of ``_tensors``."""
    if isinstance(value, torch.Tensor):
        return next(tensors)
    if isinstance(value, dict):
        return {key: _with_tensors(entry, tensors) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_with_tensors(entry, tensors) for entry in value)
    return value
