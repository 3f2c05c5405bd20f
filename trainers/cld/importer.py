"""Checkpoints of the published CLD-SGM program (Dockhorn et al., arXiv 2112.07068)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainers.ncsnpp_checkpoint import read_ncsnpp
from util.foreign_checkpoint import one_source, snapshot_state


def import_cld(sources: Sequence[Path]) -> dict[str, Any]:
    """A snapshot of a published checkpoint, one file as ``util.foreign_checkpoint.read_data_parallel`` reads it.

    Raises:
        UsageError: for anything missing, left over, of another shape, or not finite.
    """
    path = one_source(sources)
    step, network, average = read_ncsnpp(path)
    return snapshot_state("cld", path, step, {"score": network}, {"score": average})
