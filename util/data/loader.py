"""Training batches for one rank, read here or by worker processes, the same either way."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from util.data.dataset import Dataset
from util.data.hand_over import BATCHES_AHEAD, HandOverFailure, hand_over_failure, report_failures
from util.data.order import batch_indices
from util.data.worker_process import begin_work, without_signals
from util.errors import RunFailed, UsageError
from util.noise import Noise


@dataclass(frozen=True)
class MicroBatch:
    """What one forward and backward pass takes.

    Attributes:
        data: uint8 (B, C, H, W) or float32 (B, D), on the rank's device.
        positions: int64 (B,), on the rank's device: where each sample stands in the run's endless stream of
            samples, k times the total batch size plus its place in global batch k. No two samples of a run
            share one, so it can key their noise.
        host_positions: the same on the CPU, for what is planned there; taken from the device where it is not given.
    """

    data: torch.Tensor
    positions: torch.Tensor
    host_positions: torch.Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.host_positions is None:
            object.__setattr__(self, "host_positions", self.positions.cpu())


class Sender:
    """Sends micro-batches to a GPU while it computes, from pinned memory and on a stream of their own.

    Args:
        device: where they go; on the CPU they are where they should be.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def begin(self, read: list[tuple[torch.Tensor, torch.Tensor]]) -> list[MicroBatch]:
        """On their way: from data and positions of each micro-batch."""
        with torch.cuda.stream(self._stream):
            return [MicroBatch(self._sent(data), self._sent(positions), positions) for data, positions in read]

    def _sent(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._stream is not None and not tensor.is_pinned():
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def arrived(self, batch: list[MicroBatch]) -> list[MicroBatch]:
        """The same, for what the device is told from now on: it waits for them, the host does not."""
        if self._stream is not None:
            computing = torch.cuda.current_stream(self.device)
            computing.wait_stream(self._stream)
            for piece in batch:
                piece.data.record_stream(computing)
                piece.positions.record_stream(computing)
        return batch


class _MicroBatchReader:
    """Reads the samples at given positions. A UsageError is returned as its message, because worker processes
    would wrap it in a traceback."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, place: tuple[np.ndarray, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor] | str:
        positions, indices = place
        try:
            data = self.dataset.read(indices)
        except UsageError as error:
            return str(error)
        return data, torch.from_numpy(positions)


def _flipped(seed: int, batch: MicroBatch) -> MicroBatch:
    """Each image mirrored left to right with probability 1/2, drawn by its position."""
    mirrored = Noise(seed, "random flip", batch.positions, device=batch.positions.device).uniform() < 0.5
    data = torch.where(mirrored[:, None, None, None], batch.data.flip(-1), batch.data)
    return MicroBatch(data, batch.positions, batch.host_positions)


def _start_worker(_: int, parent: int) -> None:
    begin_work(parent)
    report_failures()


def _start_workers(reader: _MicroBatchReader, places: Iterator[Any], n_workers: int, pin_memory: bool) -> Iterator[Any]:
    loader: DataLoader[Any] = DataLoader(
        reader,  # type: ignore[arg-type]
        sampler=places,
        batch_size=None,
        persistent_workers=True,
        num_workers=n_workers,
        prefetch_factor=BATCHES_AHEAD,
        pin_memory=pin_memory,
        worker_init_fn=partial(_start_worker, parent=os.getpid()),
        # Its own generator, so that the run's is left alone.
        generator=torch.Generator(),
    )
    on_child_exit = signal.getsignal(signal.SIGCHLD)
    try:
        # Tried before PyTorch does, which leaves a traceback of its own where there are no semaphores.
        multiprocessing.Lock()
        with without_signals():
            return iter(loader)
    except OSError as error:
        raise RunFailed(hand_over_failure(error)) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            # PyTorch's handler would raise the news of a dead worker wherever the rank happens to be; without it,
            # the next batch to be asked for does.
            signal.signal(signal.SIGCHLD, on_child_exit or signal.SIG_DFL)


def _next_from_workers(source: Iterator[Any]) -> Any:
    try:
        batch = next(source)
    except (RuntimeError, OSError, EOFError) as error:
        # PyTorch begins so when it passes on what was raised inside a worker. All else is a worker that is gone,
        # noticed by watching it or by a connection to it that broke, or one whose batch cannot be taken.
        if str(error).startswith("Caught "):
            raise
        reason = " ".join(str(error).split())
        if "DataLoader worker" in reason or isinstance(error, (EOFError, ConnectionError)):
            raise RunFailed(f"a data worker process died ({reason}), often for lack of memory: try fewer") from error
        raise RunFailed(hand_over_failure(error)) from error
    if isinstance(batch, HandOverFailure):
        raise RunFailed(batch)
    return batch


@dataclass(frozen=True)
class Share:
    """One rank's part of each global batch.

    Attributes:
        first_step: number of the first batch, the count of steps already done.
        total_batch_size: samples in a step over all ranks.
        rank: which consecutive slice of the global batch.
        world_size: number of slices.
        n_micro_batches: pieces that the slice is cut into.

    Raises:
        UsageError: a total batch that cannot be cut so.
    """

    first_step: int
    total_batch_size: int
    rank: int
    world_size: int
    n_micro_batches: int

    def __post_init__(self) -> None:
        n_pieces = self.world_size * self.n_micro_batches
        if self.total_batch_size % n_pieces != 0 or self.total_batch_size < 1:
            raise UsageError(
                f"a total batch size of {self.total_batch_size} cannot be cut into {self.world_size} ranks with"
                f" {self.n_micro_batches} micro batches each: make it a multiple of {n_pieces}"
            )

    def positions(self, step: int) -> list[np.ndarray]:
        """Places of the samples of each micro-batch of a step, counted over the whole run; int64 (B,) each."""
        size = self.total_batch_size // (self.world_size * self.n_micro_batches)
        first = step * self.total_batch_size + self.rank * self.n_micro_batches * size
        return [first + np.arange(piece * size, (piece + 1) * size) for piece in range(self.n_micro_batches)]


def training_batches(
    dataset: Dataset,
    share: Share,
    *,
    seed: int,
    n_workers: int,
    device: torch.device,
    random_flip: bool,
    one_order: bool = False,
) -> Generator[list[MicroBatch], None, None]:
    """This rank's share of each global batch, without end.

    Batches depend on (seed, step) alone: not on the number of workers, nor on where the run was resumed; the
    micro batches of all ranks in rank order, laid end to end, are the global batch. ``close()`` on the result
    stops the workers.

    Args:
        dataset: what to read.
        share: which part of which batches.
        seed: the run's seed.
        n_workers: processes that read ahead; 0 reads in this one.
        device: where batches are put.
        random_flip: mirror each image left to right with probability 1/2, drawn by (seed, position), on the device.
        one_order: see ``util.data.order.batch_indices``.

    Raises:
        UsageError: at once for sizes that do not divide or flips of points; while reading, for damaged files.
        RunFailed: a worker process died, or cannot hand over what it has read.
    """
    if random_flip and not dataset.is_image:
        raise UsageError(f"random_flip is for images and data set {dataset.name} holds points: switch it off")

    def places() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for step in itertools.count(share.first_step):
            indices = batch_indices(seed, step, share.total_batch_size, dataset.length, one_order=one_order)
            for positions in share.positions(step):
                yield positions, indices[positions - step * share.total_batch_size]

    reader = _MicroBatchReader(dataset)

    def batches() -> Generator[list[MicroBatch], None, None]:
        source: Iterator[Any] = (
            _start_workers(reader, places(), n_workers, device.type == "cuda")
            if n_workers > 0
            else map(reader.__getitem__, places())
        )

        def read_step() -> list[tuple[torch.Tensor, torch.Tensor]]:
            """Data and positions of each micro-batch of the next step."""
            found = []
            for _ in range(share.n_micro_batches):
                read = _next_from_workers(source) if n_workers > 0 else next(source)
                if isinstance(read, str):
                    raise UsageError(read)
                found.append(read)
            return found

        sender = Sender(device)
        following = None
        try:
            while True:
                batch = sender.arrived(following or sender.begin(read_step()))
                # A GPU is sent the next batch while it computes with this one.
                is_ahead = device.type != "cpu"
                following = sender.begin(read_step()) if is_ahead else None
                yield [_flipped(seed, piece) for piece in batch] if random_flip else batch
        finally:
            # The last reference to the workers, which end with it, also where an error holds on to this frame.
            source = iter(())

    return batches()
