"""A device that is pretended on the CPU, so that what a GPU would have to wait for can be counted without one.

Its tensors hold CPU tensors, say that they are on ``DEVICE``, and refuse to meet CPU tensors as those of a GPU do.
``counting`` counts what a GPU would be slowed by: transfers in both directions, and results that the host waits for.
Values are those of the CPU, bit for bit.

``DEVICE`` is PyTorch's place for backends of others ("PrivateUse1"), which can be set up without a build of PyTorch of
one's own. Branches for ``device.type == "cuda"`` are not taken.
"""

from __future__ import annotations

import contextlib
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

ROOT = Path(__file__).parents[2]
NAME = "pretended"
DEVICE: torch.device

TO_DEVICE, TO_HOST, WAIT = "to the device", "to the host", "waits for the device"
WAITING = (
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal",
    "is_nonzero", "bincount", "_linalg_check_errors",
)  # fmt: skip
"""Operations whose result, or its size, the host has to know."""
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put")


class _Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_setup_privateuseone_for_python_backend(NAME, _Backend())
DEVICE = torch.device(NAME, 0)
# Mixed precision is passed by.
_LIBRARY = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
_LIBRARY.fallback(torch.library.fallthrough_kernel)


class OnDevice(torch.Tensor):
    """A CPU tensor that says it is on ``DEVICE``."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> OnDevice:
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            layout=inner.layout, device=DEVICE, requires_grad=False,
        )  # fmt: skip
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        return carry_out(function, args, kwargs or {}, None)


def is_ours(device: Any) -> bool:
    return torch.device(device).type == NAME


def carry_out(function: Any, args: Any, kwargs: Any, counts: Counter[tuple[str, str]] | None) -> Any:
    """An operation of PyTorch as the device would: refused, or done on the CPU and counted."""
    name = function.overloadpacket.__name__
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    theirs = [tensor for tensor in tensors if not isinstance(tensor, OnDevice)]
    kwargs = dict(kwargs)
    wanted = kwargs.get("device")
    if wanted is not None:
        kwargs["device"] = torch.device("cpu")

    def note(what: str) -> None:
        if counts is not None:
            counts[what, _who_asked()] += 1

    on_device = bool(ours) if wanted is None else is_ours(wanted)
    if name == "_to_copy":
        if on_device != bool(ours):
            note(TO_DEVICE if on_device else TO_HOST)
    elif name == "copy_":
        target, source = args[:2]
        on_device = isinstance(target, OnDevice)
        # A number on the host is an argument of the kernel that fills the target.
        if on_device != isinstance(source, OnDevice) and (not on_device or source.dim() > 0):
            note(TO_DEVICE if on_device else TO_HOST)
    elif ours and name in INDEXING:
        # Indices may be on the host, and are then sent along.
        indices = [index for index in args[1] if index is not None]
        if not isinstance(args[0], OnDevice) or (len(args) > 2 and theirs and args[2] is theirs[-1] and args[2].dim()):
            _refuse(name, ours, theirs)
        for index in indices:
            if not isinstance(index, OnDevice):
                note(TO_DEVICE)
            elif index.dtype in (torch.bool, torch.uint8):
                note(WAIT)
    elif (ours and name in WAITING) or (name == "repeat_interleave" and kwargs.get("output_size") is None and ours):
        note(WAIT)
        on_device = name not in ("_local_scalar_dense", "is_nonzero", "equal")
    elif ours and any(tensor.dim() > 0 for tensor in theirs):
        _refuse(name, ours, theirs)

    plain = tree_map(lambda value: value.inner if isinstance(value, OnDevice) else value, (args, kwargs))
    result = function(*plain[0], **plain[1])
    if on_device and torch.Tag.inplace_view in function.tags:
        # Sizes and strides of the disguise change with those of what it holds.
        with no_dispatch():
            function(*args, **kwargs)
    if not on_device:
        return result
    known = {id(tensor.inner): tensor for tensor in ours}

    def disguised(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return known[id(value)] if id(value) in known else OnDevice(value)

    return tree_map(disguised, result)


def _refuse(name: str, ours: list[OnDevice], theirs: list[torch.Tensor]) -> None:
    shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (ours, theirs)]
    raise RuntimeError(f"{name}: tensors on two devices, {shapes[0]} on {DEVICE} and {shapes[1]} on the CPU")


def _who_asked() -> str:
    """The innermost line of the project that led here."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT) and "site-packages" not in path.parts and path != Path(__file__):
            return f"{path.relative_to(ROOT)}:{frame.lineno}"
    return "PyTorch"


class _Dispatch(TorchDispatchMode):
    """Sees operations on CPU tensors too: what makes and what sends tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[str, str]] | None = None

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        return carry_out(function, args, kwargs or {}, self.counts)


class _Functions(TorchFunctionMode):
    """What PyTorch does with a tensor without dispatching it."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        if function == torch.Tensor.data.__get__ and isinstance(args[0], OnDevice):  # type: ignore[attr-defined]
            return OnDevice(args[0].inner.detach())
        if function == torch.Tensor.data.__set__ and isinstance(args[0], OnDevice):  # type: ignore[attr-defined]
            args[0].inner = args[1].inner
            return None
        if function is torch.Tensor.tolist and isinstance(args[0], OnDevice):
            return args[0].cpu().tolist()
        if function is torch.tensor and kwargs.get("device") is not None and is_ours(kwargs["device"]):
            return function(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        return function(*args, **kwargs)


class PretendedGpu:
    """The device while it is there."""

    def __init__(self, dispatch: _Dispatch) -> None:
        self._dispatch = dispatch

    @contextlib.contextmanager
    def counting(self) -> Iterator[Counter[tuple[str, str]]]:
        """Counts, while within, of (what, the line of the project that asked for it)."""
        counts: Counter[tuple[str, str]] = Counter()
        self._dispatch.counts = counts
        try:
            yield counts
        finally:
            self._dispatch.counts = None


@contextlib.contextmanager
def pretended_gpu() -> Iterator[PretendedGpu]:
    """Within, ``DEVICE`` can be used as "cuda" would be."""
    swapped = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        # Backward passes in this thread: the modes are of a thread.
        with (
            torch.autograd.set_multithreading_enabled(False),
            sdpa_kernel(SDPBackend.MATH),
            _Functions(),
            _Dispatch() as dispatch,
        ):
            yield PretendedGpu(dispatch)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swapped)


def host(value: Any) -> Any:
    """The same on the CPU, without counting as a transfer."""
    return tree_map(lambda entry: entry.inner.detach() if isinstance(entry, OnDevice) else entry, value)
