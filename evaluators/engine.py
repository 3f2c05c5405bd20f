"""The evaluation engine: N items in chunks, spread over ranks, resumable, merged in index order.

A chunk is a run of consecutive indices. How N is cut depends on N and the chunk size alone, so every chunk is
the same batch of the same items on any number of ranks, and so is every value computed from it.

Ranks share work through the evaluation folder, which every rank has to see. A rank takes a chunk by creating
a claim file, which succeeds for one rank only. It begins with a share of its own, so that claims do not
collide, and then takes what the others have left: a slow rank, or one whose chunks need more solver steps,
never keeps the others waiting for more than its last chunk, and no collective call comes between two chunks.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluators.files import ArrayInParts, map_arrays, read_arrays, write_arrays
from util.distributed import Distributed
from util.errors import Preempted, RunFailed, UsageError
from util.files import SECONDS_UNTIL_VISIBLE, remove_leftovers, wait_until_seen, why_not_written
from util.progress import Progress

logger = logging.getLogger(__name__)

Compute = Callable[[torch.Tensor], Mapping[str, torch.Tensor]]

_FINGERPRINT = "fingerprint"


def run_chunks(
    path: Path,
    n_items: int,
    chunk_size: int,
    compute: Compute,
    fingerprint: Mapping[str, Any],
    distributed: Distributed,
    description: str,
    should_stop: Callable[[], bool],
) -> dict[str, np.ndarray] | None:
    """Compute arrays for items 0 to ``n_items`` - 1, each exactly once, and merge them into one file.

    Finished chunks are kept beside ``path`` in ``<stem>.chunks/`` until all of them are there; then ``path``
    takes their place. A call that finds ``path`` complete reads it and computes nothing; one that finds some
    chunks computes the others. Chunks that cannot be read, and those of another fingerprint, are dropped.

    Args:
        path: the merged ``.npz`` file, in a folder that all ranks share.
        n_items: number of items.
        chunk_size: items of one chunk; the last one may have fewer.
        compute: int64 (B,) consecutive indices on the CPU -> tensors by name, each with leading dimension B,
            or with no dimension for a number that belongs to the chunk as a whole (NFE). It may raise Preempted.
        fingerprint: plain values that the result depends on (snapshot, seed, settings), JSON-serialisable;
            ``n_items`` and ``chunk_size`` are added to it.
        distributed: this process's place among the ranks.
        description: what is being computed, for the progress bar.
        should_stop: polled between chunks. It may be true on some ranks only; then all of them stop after
            the chunk they are working on.

    Returns:
        On rank 0 the merged arrays in index order, (n_items, ...), and (n_chunks,) for numbers of a chunk, read-only
        and read from ``path`` where they are used; None on the other ranks.

    Raises:
        Preempted: on every rank, when one was told to stop with chunks still missing. Finished ones are kept.
        RunFailed: the disk is full, the folder is not shared, or a finished chunk cannot be read back.
        UsageError: ``n_items`` or ``chunk_size`` is not positive.
    """
    if n_items < 1 or chunk_size < 1:
        raise UsageError(f"{description}: {n_items} items in chunks of {chunk_size}: both must be at least 1")
    run = _Run(path, n_items, chunk_size, fingerprint)
    merged = run.read_merged() if distributed.is_main else None
    plan = distributed.broadcast(run.plan() if distributed.is_main and merged is None else None)
    if plan is None:
        return merged
    missing, claims = plan
    progress = Progress(description, n_items, run.n_done(), visible=distributed.is_main)
    try:
        told_to_stop = run.work(missing, claims, compute, distributed, progress, should_stop)
        told_to_stop = distributed.any(told_to_stop)
        if distributed.is_main:
            progress.show(run.n_done())
    finally:
        progress.close()
    failure = None
    if distributed.is_main:
        absent = run.wait_for_files(0.0 if told_to_stop else SECONDS_UNTIL_VISIBLE)
        if not absent:
            merged, failure = run.merge()
        elif not told_to_stop:
            failure = f"{run.chunk_path(absent[0])} is missing although a rank wrote it: run again to redo it"
    complete, failure = distributed.broadcast((merged is not None, failure))
    if failure is not None:
        raise RunFailed(failure)
    if not complete:
        raise Preempted(f"{description} was stopped; finished chunks are kept in {run.folder}")
    return merged


class _UnreadableChunk(Exception):
    """A finished chunk is damaged."""


class _Run:
    """The files of one call of ``run_chunks``."""

    def __init__(self, path: Path, n_items: int, chunk_size: int, fingerprint: Mapping[str, Any]) -> None:
        self.path = path
        self.folder = path.with_suffix(".chunks")
        self.n_items, self.chunk_size = n_items, chunk_size
        self.n_chunks = -(-n_items // chunk_size)
        identity = {**fingerprint, "n_items": n_items, "chunk_size": chunk_size}
        self.fingerprint = json.dumps(identity, sort_keys=True)

    def chunk_path(self, chunk: int) -> Path:
        return self.folder / f"{chunk:08d}.npz"

    def indices(self, chunk: int) -> torch.Tensor:
        return torch.arange(chunk * self.chunk_size, min((chunk + 1) * self.chunk_size, self.n_items))

    def read_merged(self) -> dict[str, np.ndarray] | None:
        """The merged arrays, when the file is whole and of this fingerprint."""
        arrays = map_arrays(self.path)
        if arrays is None or not self._is_ours(arrays, self.path):
            return None
        shutil.rmtree(self.folder, ignore_errors=True)
        return arrays

    def plan(self) -> tuple[list[int], Path]:
        """Tidy the chunk folder; the chunks that are missing, and a new folder for the claims on them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder)
        # Claims are valid for one start only: those of a killed run would keep its chunks from being redone.
        for old_claims in self.folder.glob("claims_*"):
            shutil.rmtree(old_claims)
        missing = set(range(self.n_chunks))
        told = False
        for file in sorted(self.folder.glob("*.npz")):
            arrays = read_arrays(file)
            if arrays is not None and self._is_ours(arrays, file, quiet=told):
                missing.discard(int(file.stem))
            else:
                told = told or arrays is not None
                file.unlink()
        if len(missing) < self.n_chunks:
            n_kept = self.n_chunks - len(missing)
            logger.info("%s: %d of %d chunks are done already", self.path.name, n_kept, self.n_chunks)
        claims = self.folder / f"claims_{uuid.uuid4().hex}"
        claims.mkdir()
        return sorted(missing), claims

    def work(
        self,
        missing: list[int],
        claims: Path,
        compute: Compute,
        distributed: Distributed,
        progress: Progress,
        should_stop: Callable[[], bool],
    ) -> bool:
        """Take chunks until none is left or a rank is told to stop; whether this rank saw a stop."""
        wait_until_seen(claims)
        first = distributed.rank * len(missing) // distributed.world_size
        stop = claims / "stop"
        for chunk in missing[first:] + missing[:first]:
            if should_stop():
                stop.touch()
            if stop.exists():
                return True
            if not _claim(claims / str(chunk)):
                continue
            try:
                tensors = compute(self.indices(chunk))
            except Preempted:  # the model heeded a stop in the middle of the chunk
                stop.touch()
                return True
            self._write_chunk(chunk, tensors)
            # The last line is left to the caller, who knows when the other ranks have finished theirs.
            if distributed.is_main and (n_done := self.n_done()) < self.n_items:
                progress.show(n_done)
        return False

    def n_done(self) -> int:
        """Items finished by all ranks, to within a chunk: one listing of a folder."""
        n_files = sum(entry.name.endswith(".npz") for entry in os.scandir(self.folder))
        return min(n_files * self.chunk_size, self.n_items)

    def wait_for_files(self, seconds: float) -> list[int]:
        """Chunks that have no file, after waiting for them to appear for some time."""
        deadline = time.monotonic() + seconds
        while True:
            present = {entry.name for entry in os.scandir(self.folder)}
            absent = [chunk for chunk in range(self.n_chunks) if self.chunk_path(chunk).name not in present]
            if not absent or time.monotonic() >= deadline:
                return absent
            time.sleep(0.5)

    def merge(self) -> tuple[dict[str, np.ndarray] | None, str | None]:
        """Chunks in index order into one file; the arrays, or else what went wrong."""
        # What is written of a chunk is read from it array by array: memory holds one array of one chunk.
        first = self._read_chunk(0)
        if isinstance(first, str):
            return None, first
        try:
            arrays = {
                name: ArrayInParts(
                    (self.n_items, *array.shape[1:]) if array.ndim else (self.n_chunks,), array.dtype, self._parts(name)
                )
                for name, array in first.items()
            }
            self._write(self.path, arrays)
        except _UnreadableChunk as error:
            return None, str(error)
        merged = map_arrays(self.path)
        if merged is None:
            return None, f"{self.path} cannot be read back: run again to redo it"
        merged.pop(_FINGERPRINT)
        shutil.rmtree(self.folder, ignore_errors=True)
        return merged, None

    def _parts(self, name: str) -> Iterator[np.ndarray]:
        for chunk in range(self.n_chunks):
            arrays = self._read_chunk(chunk, name)
            if isinstance(arrays, str):
                raise _UnreadableChunk(arrays)
            yield np.atleast_1d(arrays[name])

    def _read_chunk(self, chunk: int, name: str | None = None) -> dict[str, np.ndarray] | str:
        """Its arrays, or the one of that name; a message where it cannot be used."""
        file = self.chunk_path(chunk)
        arrays = read_arrays(file, None if name is None else (name, _FINGERPRINT))
        if arrays is None or not self._is_ours(arrays, file):
            return f"{file} cannot be read back: run again to redo it"
        return arrays

    def _write_chunk(self, chunk: int, tensors: Mapping[str, torch.Tensor]) -> None:
        arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
        n = len(self.indices(chunk))
        for name, array in arrays.items():
            if array.ndim > 0 and len(array) != n:
                raise ValueError(f"{name} of a chunk of {n} items has shape {array.shape}")
        self._write(self.chunk_path(chunk), arrays)

    def _write(self, file: Path, arrays: Mapping[str, np.ndarray | ArrayInParts]) -> None:
        try:
            write_arrays(file, {**arrays, _FINGERPRINT: np.array(self.fingerprint)})
        except OSError as error:
            raise RunFailed(f"{file}: cannot be written: {why_not_written(error)}") from error

    def _is_ours(self, arrays: dict[str, np.ndarray], file: Path, quiet: bool = False) -> bool:
        """Take the fingerprint out of ``arrays``; whether it is this run's. If not, say what differs."""
        found = str(arrays.pop(_FINGERPRINT, "{}"))
        if found != self.fingerprint and not quiet:
            difference = _difference(found, self.fingerprint)
            logger.warning("%s was made with other settings (%s): starting afresh", file, difference)
        return found == self.fingerprint


def _claim(path: Path) -> bool:
    """Whether this process is the one that created the file."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    return True


def _difference(found: str, wanted: str) -> str:
    """The first few settings that differ, in words."""
    try:
        old, new = _unfolded(json.loads(found)), _unfolded(json.loads(wanted))
    except (TypeError, ValueError):
        return "unknown ones"
    keys = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    return ", ".join(f"{key} {old.get(key)!r}, now {new.get(key)!r}" for key in keys[:3])


def _unfolded(values: dict[str, Any]) -> dict[str, Any]:
    """Nested settings as those of one dictionary."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _unfolded(value) if isinstance(value, dict) else {key: value}
    return flat
