"""Checkpoints of the published INDM program (Kim et al., arXiv 2205.13699): a score network and a flow, a file each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from trainers.ncsnpp_checkpoint import read_ncsnpp
from util.errors import UsageError
from util.foreign_checkpoint import (
    average_by_order,
    check_tensor,
    entry,
    own_storage,
    read_foreign,
    snapshot_state,
    without_prefix,
)

_PARTS = ("generator.", "discriminator.")
_BUFFERS = (
    "last_n_samples",
    "last_firmom",
    "last_secmom",
    "scale",
    "running_mean",
    "running_var",
    "num_batches_tracked",
    "weight_inv",
)
"""Last part of the names of what the flow keeps beside its parameters."""


def import_indm(sources: Sequence[Path]) -> dict[str, Any]:
    """A snapshot of a published pair of checkpoints.

    The layout of both files is that of ``trainers.ncsnpp_checkpoint``; the average of the flow is of every parameter.

    Args:
        sources: ``checkpoint_<k>.pth`` with the score network, ``flow_checkpoint_<k>.pth`` with the flow.

    Raises:
        UsageError: not two files, of different steps, or anything missing, of another shape, or not finite.
    """
    if len(sources) != 2:
        raise UsageError(
            f"{len(sources)} files given; a checkpoint is a pair, checkpoint_<k>.pth and flow_checkpoint_<k>.pth; the "
            "snapshot to write comes last"
        )
    score_path, flow_path = sources
    step, score, score_average = read_ncsnpp(score_path)
    flow_step, flow, flow_average = _read_flow(flow_path)
    if step != flow_step:
        raise UsageError(f"{score_path} is of step {step}, {flow_path} of step {flow_step}; give two of the same step")
    networks, emas = {"score": score, "flow": flow}, {"score": score_average, "flow": flow_average}
    return snapshot_state("indm", score_path, step, networks, emas)


def _read_flow(path: Path) -> tuple[int, dict[str, torch.Tensor], dict[str, Any]]:
    checkpoint, source = read_foreign(path), str(path)
    network = without_prefix(entry(checkpoint, "model", Mapping, source), source)
    foreign = next((name for name in network if not name.startswith(_PARTS)), None)
    if foreign is not None or not network:
        found = f"entry '{foreign}'" if network else "no entries"
        raise UsageError(f"{source}: model has {found}; a flow has {' and '.join(f'{part}*' for part in _PARTS)} only")
    counts = {name: tensor for name, tensor in network.items() if name.endswith("num_batches_tracked")}
    tensors = {name: tensor for name, tensor in network.items() if name not in counts}
    for name, tensor in tensors.items():
        check_tensor(tensor, f"{source}: model {name}")
    parameters = {name: tensor for name, tensor in tensors.items() if name.rsplit(".", 1)[-1] not in _BUFFERS}
    average = average_by_order(checkpoint, parameters, source)
    # In the order of the file, for whoever compares the two.
    own = {**own_storage(tensors), **{name: torch.as_tensor(count).clone() for name, count in counts.items()}}
    return entry(checkpoint, "step", int, source), {name: own[name] for name in network}, average
