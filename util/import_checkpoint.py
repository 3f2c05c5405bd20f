"""Turn checkpoints that other programs published into snapshots of this one.

python -m util.import_checkpoint cld IN.pth OUT.pth
"""

from __future__ import annotations

import argparse
import platform
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from util.errors import EXIT_FINISHED, EXIT_USAGE, UsageError
from util.named_shapes import describe_difference, shapes
from util.snapshot import write_snapshot

NCSNPP_MODULES: dict[str, dict[str, tuple[int | str, ...]]] = {
    "Fourier frequencies": {"W": ("n",)},
    "linear layer": {"weight": ("out", "in"), "bias": ("out",)},
    "convolution": {"weight": ("out", "in", 3, 3), "bias": ("out",)},
    "group norm": {"weight": ("in",), "bias": ("in",)},
    "pyramid convolution": {"Conv2d_0.weight": ("out", "in", 3, 3), "Conv2d_0.bias": ("out",)},
    "attention": {
        "GroupNorm_0.weight": ("in",),
        "GroupNorm_0.bias": ("in",),
        **{
            f"NIN_{i}.{name}": shape
            for i in range(4)
            for name, shape in (("W", ("in", "in")), ("b", ("in",)))
        },
    },
    "residual block": {
        "GroupNorm_0.weight": ("in",),
        "GroupNorm_0.bias": ("in",),
        "Conv_0.weight": ("out", "in", 3, 3),
        "Conv_0.bias": ("out",),
        "Dense_0.weight": ("out", "embedding"),
        "Dense_0.bias": ("out",),
        "GroupNorm_1.weight": ("out",),
        "GroupNorm_1.bias": ("out",),
        "Conv_1.weight": ("out", "out", 3, 3),
        "Conv_1.bias": ("out",),
    },
}
"""Parameters of each kind of module in the published NCSN++ checkpoints; a word stands for one size."""
NCSNPP_MODULES["residual block with projection"] = {
    **NCSNPP_MODULES["residual block"],
    "Conv_2.weight": ("out", "in", 1, 1),
    "Conv_2.bias": ("out",),
}


def import_cld(checkpoint: Any, source: str) -> dict[str, Any]:
    """A checkpoint of the published CLD-SGM program (Dockhorn et al., arXiv 2112.07068).

    Its entries: ``model``, the state_dict behind data-parallel training (prefix ``module.``); ``ema`` with
    ``decay``, ``num_updates`` and ``shadow_params``, a list without names of the averages of all parameters
    but the Fourier frequencies, in the order of ``model``; ``step``; ``optimizer``, which is left behind.

    Args:
        checkpoint: the loaded file.
        source: its name, for messages and for the record in the snapshot.

    Raises:
        UsageError: for anything missing, left over, of another shape, or not finite.
    """
    step = _entry(checkpoint, "step", int, source)
    network = _without_prefix(_entry(checkpoint, "model", Mapping, source), source)
    for name, tensor in network.items():
        _check_tensor(tensor, f"{source}: model {name}")
    _check_ncsnpp(shapes(network), source)

    ema = _entry(checkpoint, "ema", Mapping, source)
    decay = _entry(ema, "decay", float, f"{source}: ema")
    n_updates = _entry(ema, "num_updates", int, f"{source}: ema")
    averages = _entry(ema, "shadow_params", list, f"{source}: ema")
    trainable = [name for name in network if not _is_fourier(name, network[name])]
    if len(averages) != len(trainable):
        raise UsageError(
            f"{source}: ema shadow_params has {len(averages)} tensors for {len(trainable)} trainable "
            "parameters; the file is incomplete or of another network"
        )
    shadow = dict(zip(trainable, averages, strict=True))
    for name, tensor in shadow.items():
        _check_tensor(tensor, f"{source}: ema shadow_params {name}")
    difference = describe_difference(shapes({name: network[name] for name in trainable}), shapes(shadow))
    if difference:
        raise UsageError(f"{source}: ema shadow_params is not in the order of model: {difference}")
    return {
        "step": step,
        "config": {"imported_from": Path(source).name, "system": "cld"},
        "networks": {"score": _own_storage(network)},
        "emas": {"score": {"decay": decay, "n_updates": n_updates, "shadow": _own_storage(shadow)}},
        "optimizers": {},
        "scaler": {},
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
        },
    }


IMPORTERS: dict[str, Callable[[Any, str], dict[str, Any]]] = {"cld": import_cld}
"""For each system, what makes a snapshot of a loaded checkpoint."""


def read_foreign(path: Path) -> Any:
    """Load a file of unknown origin: tensors and plain containers only, no code.

    Raises:
        UsageError: no such file, damaged, or in need of more than that.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file; give the checkpoint to convert")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    # Damage can surface as almost any exception of the zip reader or the unpickler.
    except Exception as error:
        message = str(error)
        unsafe = re.search(r"GLOBAL ([\w.]+)", message)
        if unsafe:
            raise UsageError(
                f"{path}: it holds more than tensors and plain containers ({unsafe[1]}), which "
                "could run code; save it again without that"
            ) from None
        first_line = (message.strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{path}: not a readable PyTorch checkpoint ({first_line[:160]})") from None


def _entry(mapping: Any, key: str, kind: type, where: str) -> Any:
    if not isinstance(mapping, Mapping) or key not in mapping:
        raise UsageError(f"{where}: no entry '{key}'; this is not a checkpoint of the named system")
    value = mapping[key]
    if kind in (int, float) and isinstance(value, (int, float)) and not isinstance(value, bool):
        return kind(value)
    if not isinstance(value, kind):
        raise UsageError(
            f"{where}: entry '{key}' is a {type(value).__name__}, expected {kind.__name__.lower()}"
        )
    return value


def _without_prefix(model: Mapping[Any, Any], source: str) -> dict[str, torch.Tensor]:
    prefix = "module."
    for name in model:
        if not str(name).startswith(prefix):
            raise UsageError(
                f"{source}: model entry '{name}' lacks the prefix '{prefix}' that all entries have"
            )
    return {name.removeprefix(prefix): tensor for name, tensor in model.items()}


def _is_fourier(name: str, tensor: torch.Tensor) -> bool:
    return name == "all_modules.0.W" and tensor.ndim == 1


def _check_tensor(tensor: Any, where: str) -> None:
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        raise UsageError(f"{where}: not a floating-point tensor; the file is damaged or of another system")
    if not tensor.isfinite().all():
        raise UsageError(f"{where}: holds values that are not finite; use an earlier checkpoint")


def _check_ncsnpp(network: Mapping[str, tuple[int, ...]], source: str) -> None:
    """The names and shapes make up complete modules, numbered from 0 without a gap."""
    modules: dict[int, dict[str, tuple[int, ...]]] = {}
    for name, shape in network.items():
        match = re.fullmatch(r"all_modules\.(\d+)\.(.+)", name)
        if match is None:
            raise UsageError(
                f"{source}: unexpected model entry '{name}'; NCSN++ has all_modules.<index>.<name> only"
            )
        modules.setdefault(int(match[1]), {})[match[2]] = shape
    if not modules:
        raise UsageError(f"{source}: model has no entries; the file is incomplete")
    for index in range(max(modules) + 1):
        if index not in modules:
            raise UsageError(f"{source}: model has no entry all_modules.{index}.*; the file is incomplete")
        problem = _compare_with_kinds(modules[index])
        if problem:
            raise UsageError(f"{source}: model all_modules.{index}: {problem}")


def _compare_with_kinds(found: dict[str, tuple[int, ...]]) -> str:
    """How the parameters of a module differ from the kind of module that is nearest, or nothing."""
    problems = []
    for kind, expected in NCSNPP_MODULES.items():
        sizes = _sizes(expected, found)
        shapes_of_kind = {
            name: tuple(size if isinstance(size, int) else sizes.get(size, 0) for size in shape)
            for name, shape in expected.items()
        }
        difference = describe_difference(shapes_of_kind, found)
        if not difference and kind == "residual block" and sizes["in"] != sizes["out"]:
            difference = "missing Conv_2.weight, Conv_2.bias"
        if not difference:
            return ""
        n_differences = len(set(expected) ^ set(found)) + sum(
            found[name] != shape for name, shape in shapes_of_kind.items() if name in found
        )
        problems.append((n_differences, f"{difference} (taken for a {kind})"))
    return min(problems)[1]


def _sizes(
    expected: Mapping[str, tuple[int | str, ...]], found: Mapping[str, tuple[int, ...]]
) -> dict[str, int]:
    """The size that each symbol stands for most often."""
    votes: dict[str, list[int]] = {}
    for name, shape in expected.items():
        for symbol, size in zip(shape, found.get(name, ()), strict=False):
            if isinstance(symbol, str):
                votes.setdefault(symbol, []).append(size)
    return {symbol: max(set(sizes), key=sizes.count) for symbol, sizes in votes.items()}


def _own_storage(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # A tensor that is a view would take the whole of what it views into the file.
    return {name: tensor.detach().float().contiguous().clone() for name, tensor in tensors.items()}


def convert(system: str, source: Path, target: Path) -> None:
    """Read, convert and write; ``target`` appears whole or not at all.

    Raises:
        UsageError: the source is not what ``system`` says, or the target cannot be written.
    """
    if target.exists() and source.exists() and target.samefile(source):
        raise UsageError(f"{target}: is the checkpoint to convert itself; give another name for the snapshot")
    if not target.parent.is_dir() or target.is_dir():
        raise UsageError(f"{target}: cannot be written; give a file name in a folder that exists")
    state = IMPORTERS[system](read_foreign(source), str(source))
    try:
        write_snapshot(target, state)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        raise UsageError(f"{target}: cannot be written ({error}); choose a place with room") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0, or 2 with one line on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m util.import_checkpoint",
        description="Turn a published checkpoint into a snapshot that --ckpt_file accepts.",
    )
    parser.add_argument("system", choices=sorted(IMPORTERS), help="program that wrote the checkpoint")
    parser.add_argument("source", metavar="IN.pth", type=Path, help="published checkpoint")
    parser.add_argument("target", metavar="OUT.pth", type=Path, help="snapshot to write")
    options = parser.parse_args(arguments)
    try:
        convert(options.system, options.source, options.target)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    print(f"wrote {options.target}")
    return EXIT_FINISHED


if __name__ == "__main__":
    sys.exit(main())
