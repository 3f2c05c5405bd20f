"""What every importer needs: reading files of unknown origin, and checking what is in them."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from torch import nn

from util.errors import UsageError
from util.foreign_types import SAFE_TYPES, Array
from util.named_shapes import Shapes, describe_difference, shapes

Network = TypeVar("Network", bound=nn.Module)

PREFIXES = ("module.", "_orig_mod.")
"""That data-parallel training and ``torch.compile`` put before the names of a network."""
WRAPPINGS = ("state_dict", "model", "model_state_dict", "net", "network", "checkpoint")
"""Keys behind which programs keep what they save."""


def read_foreign(path: Path) -> Any:
    """Load a file of unknown origin: tensors, plain containers and ``util.foreign_types.SAFE_TYPES``, no code.

    Numbers and arrays of numpy come as those of Python and torch.

    Raises:
        UsageError: no such file, damaged, or in need of more than that.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file; give the checkpoint to convert")
    try:
        with torch.serialization.safe_globals(SAFE_TYPES):
            return _with_tensors(torch.load(path, map_location="cpu", weights_only=True))
    # Damage can surface as almost any exception of the zip reader or the unpickler.
    except Exception as error:
        message = str(error)
        unsafe = re.search(r"(?:GLOBAL |<class ')([\w.]+)", message)
        if unsafe:
            raise UsageError(
                f"{path}: it holds more than tensors and plain containers ({unsafe[1]}), which "
                "could run code; save it again without that"
            ) from None
        message = message.rpartition("WeightsUnpickler error:")[2]
        if "Unsupported operand" in message:
            message = "of a pickle protocol that torch.load refuses; save it with the one that torch.save has by itself"
        first_line = (message.strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{path}: not a readable PyTorch checkpoint ({first_line[:160]})") from None


def _with_tensors(value: Any) -> Any:
    """The same with tensors in place of numpy's arrays."""
    if isinstance(value, Array):
        return value.tensor
    if isinstance(value, Namespace | SimpleNamespace):
        return type(value)(**{name: _with_tensors(inner) for name, inner in vars(value).items()})
    if isinstance(value, dict):
        return {key: _with_tensors(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return (list if isinstance(value, list) else tuple)(map(_with_tensors, value))
    return value


def unwrapped(checkpoint: Any, *wanted: str) -> Any:
    """What is inside the ``WRAPPINGS`` of a checkpoint that has none of the entries ``wanted`` outside of them."""
    while isinstance(checkpoint, Mapping) and not any(key in checkpoint for key in wanted):
        inside = [checkpoint[key] for key in WRAPPINGS if isinstance(checkpoint.get(key), Mapping)]
        if len(inside) != 1:
            break
        checkpoint = inside[0]
    return checkpoint


def entry(mapping: Any, key: str, kind: type, where: str) -> Any:
    """The value of ``key``, of the type ``kind``. Raises UsageError where there is none."""
    if not isinstance(mapping, Mapping) or key not in mapping:
        raise UsageError(f"{where}: no entry '{key}'; this is not a checkpoint of the named system")
    value = mapping[key]
    if kind in (int, float) and isinstance(value, (int, float)) and not isinstance(value, bool):
        return kind(value)
    if not isinstance(value, kind):
        raise UsageError(f"{where}: entry '{key}' is a {type(value).__name__}, expected {kind.__name__.lower()}")
    return value


def count(mapping: Mapping[str, Any], key: str, where: str) -> int:
    """A whole number that the file holds as a number or as an array without axes. Raises UsageError where there is
    none."""
    value = mapping.get(key)
    if isinstance(value, torch.Tensor) and value.ndim == 0 and not value.is_floating_point():
        return int(value)
    return entry(mapping, key, int, where)


def without_prefixes(model: Mapping[Any, Any], source: str) -> dict[str, Any]:
    """A state_dict without the ``PREFIXES`` around all of its names, in any order, and without ``_orig_mod`` in them.

    Raises:
        UsageError: some entries have a prefix that others lack, or two come to the same name.
    """
    names = {name: str(name) for name in model}
    while prefix := next((prefix for prefix in PREFIXES if any(map(_begins(prefix), names.values()))), ""):
        for name, inner in names.items():
            if not inner.startswith(prefix):
                raise UsageError(
                    f"{source}: entry '{name}' lacks the prefix '{prefix}' that others have; save them all alike"
                )
            names[name] = inner.removeprefix(prefix)
    plain: dict[str, Any] = {}
    for name, inner in names.items():
        inner = inner.replace("._orig_mod.", ".")
        if inner in plain:
            raise UsageError(f"{source}: entry '{name}' and another are both '{inner}'; keep one of them")
        plain[inner] = model[name]
    return plain


def _begins(prefix: str) -> Callable[[str], bool]:
    return lambda name: name.startswith(prefix)


def check_tensor(tensor: Any, where: str) -> None:
    """Raise UsageError unless it is a finite floating-point tensor."""
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        raise UsageError(f"{where}: not a floating-point tensor; the file is damaged or of another system")
    if not tensor.isfinite().all():
        raise UsageError(f"{where}: holds values that are not finite; use an earlier checkpoint")


def real_network(make: Callable[[], Network], where: str, kind: str) -> Network:
    """The network that a file's shapes describe, its parameters without values and memory.

    Args:
        make: builds it; KeyError, IndexError and the like say that the shapes describe none.
        where: the part of the file, for messages.
        kind: of network, likewise.

    Raises:
        UsageError: there is none.
    """
    try:
        with torch.device("meta"):
            return make()
    except KeyError as missing:
        raise UsageError(f"{where} has no {missing.args[0]}; it is incomplete, or not a network of {kind}") from None
    except (IndexError, ValueError, ArithmeticError, RuntimeError):
        raise UsageError(f"{where} is incomplete, or not a network of {kind}") from None
    except UsageError as impossible:
        raise UsageError(f"{where} is not a whole network of {kind}: {impossible}") from None


def check_network(make: Callable[[], Network], found: Shapes, where: str, kind: str) -> Network:
    """As ``real_network``, compared with ``found``, the names and shapes of the file.

    Raises:
        UsageError: something is missing, left over or of another shape.
    """
    network = real_network(make, where, kind)
    check_shapes(shapes(network.state_dict()), found, where, kind)
    return network


def check_shapes(expected: Shapes, found: Shapes, where: str, kind: str) -> None:
    """Raise UsageError for the first differences."""
    difference = describe_difference(expected, found)
    if difference:
        raise UsageError(f"{where} is not a whole network of {kind}: {difference}")


def read_data_parallel(
    path: Path, make: Callable[[Shapes], nn.Module], kind: str
) -> tuple[int, dict[str, torch.Tensor], dict[str, Any]]:
    """Step, network and average of a checkpoint as programs after score_sde write them.

    Its entries: ``model`` (or another of ``WRAPPINGS``), the state_dict, with or without ``PREFIXES``; ``ema`` with
    ``decay``, ``num_updates`` and ``shadow_params``, a list without names of the averages of all parameters that are
    trained, in the network's order; ``step``; ``optimizer``, which is left behind.

    Args:
        path: the file.
        make: the network that the shapes of a state_dict describe, as for ``check_network``.
        kind: of network, for messages.

    Raises:
        UsageError: for anything missing, left over, of another shape, or not finite.
    """
    checkpoint, source = unwrapped(read_foreign(path), "ema", "step"), str(path)
    key = next((key for key in WRAPPINGS if isinstance(checkpoint, Mapping) and key in checkpoint), "model")
    network = without_prefixes(unwrapped(entry(checkpoint, key, Mapping, source)), f"{source}: {key}")
    for name, tensor in network.items():
        if not name.endswith("num_batches_tracked"):
            check_tensor(tensor, f"{source}: model {name}")
    found = shapes(network)
    real = check_network(lambda: make(found), found, f"{source}: model", kind)
    trained = {name: network[name] for name, parameter in real.named_parameters() if parameter.requires_grad}
    average = average_by_order(checkpoint, trained, source)
    return entry(checkpoint, "step", int, source), own_storage(network), average


def own_storage(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies that share no storage with anything else, float32 where they are not whole numbers."""
    # A tensor that is a view would take the whole of what it views into the file.
    return {
        name: (tensor.float() if tensor.is_floating_point() else tensor).detach().contiguous().clone()
        for name, tensor in tensors.items()
    }


def adam_state(
    make: Callable[[dict[str, nn.Parameter]], torch.optim.Optimizer],
    network: Mapping[str, torch.Tensor],
    moments: Mapping[str, Mapping[str, torch.Tensor]],
    n_updates: int,
) -> dict[str, Any]:
    """The state_dict of a network's optimiser with the moments of a file.

    Args:
        make: the optimiser of parameters by name.
        network: its weights.
        moments: "exp_avg" and "exp_avg_sq" of each parameter, by its name.
        n_updates: how often Adam has been applied.
    """
    parameters = {name: nn.Parameter(tensor) for name, tensor in network.items()}
    optimizer = make(parameters)
    for name, parameter in parameters.items():
        of_parameter = {key: tensors[name] for key, tensors in moments.items()}
        optimizer.state[parameter] = {"step": torch.tensor(float(n_updates)), **of_parameter}
    return optimizer.state_dict()


def average_by_order(
    checkpoint: Any, parameters: Mapping[str, torch.Tensor], source: str, key: str = "ema", of: str = "model"
) -> dict[str, Any]:
    """The average that a checkpoint keeps as ``key``: ``decay``, ``num_updates`` and ``shadow_params``, a list without
    names.

    Args:
        checkpoint: the loaded file.
        parameters: what the list holds averages of, in its order.
        source: the file, for messages.
        key: of the entry.
        of: the entry that holds the parameters, for messages.

    Returns:
        ``{"decay", "n_updates", "shadow"}``, by name.

    Raises:
        UsageError: there is none, or it is of other parameters.
    """
    ema = entry(checkpoint, key, Mapping, source)
    averages = entry(ema, "shadow_params", list, f"{source}: {key}")
    if len(averages) != len(parameters):
        raise UsageError(
            f"{source}: {key} shadow_params has {len(averages)} tensors for {len(parameters)} trainable "
            "parameters; the file is incomplete or of another network"
        )
    shadow = dict(zip(parameters, averages, strict=True))
    for name, tensor in shadow.items():
        check_tensor(tensor, f"{source}: {key} shadow_params {name}")
    difference = describe_difference(shapes(parameters), shapes(shadow))
    if difference:
        raise UsageError(f"{source}: {key} shadow_params is not in the order of {of}: {difference}")
    return {
        "decay": entry(ema, "decay", float, f"{source}: {key}"),
        "n_updates": entry(ema, "num_updates", int, f"{source}: {key}"),
        "shadow": own_storage(shadow),
    }


def one_source(sources: Sequence[Path]) -> Path:
    """The only file. Raises UsageError where there are several."""
    if len(sources) != 1:
        names = ", ".join(str(source) for source in sources)
        raise UsageError(f"{names}: {len(sources)} files; this system's checkpoint is one file, then the snapshot")
    return sources[0]


def snapshot_state(
    system: str,
    source: Path,
    step: int,
    networks: dict[str, dict[str, torch.Tensor]],
    emas: dict[str, dict[str, Any]],
    optimizers: dict[str, dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """A snapshot. Without optimiser states it can be evaluated, and other runs can start from its weights.

    Args:
        system: ours, for ``--system``.
        source: the file it came from, for the record.
        step: training step.
        networks: state_dict of each network.
        emas: for each network ``{"decay", "n_updates", "shadow"}``.
        optimizers: state_dict of each network's optimiser, with which training can go on.
    """
    return {
        "step": step,
        "config": {"imported_from": source.name, "system": system},
        "networks": networks,
        "emas": emas,
        "optimizers": optimizers or {},
        "scaler": {},
    }
