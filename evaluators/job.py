"""What all evaluations of one snapshot share, and how their results are written down."""

from __future__ import annotations

import logging
import math
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from evaluators.engine import Compute, run_chunks
from evaluators.files import read_json
from util.data.dataset import Dataset
from util.distributed import Distributed
from util.errors import Preempted
from util.files import write_json
from util.noise import Noise

logger = logging.getLogger(__name__)

T = TypeVar("T")

RESULTS = "results.json"
N_ITEMS_OF_ENDLESS_SET = 10_000
_SECONDS_BETWEEN_SIGNS = 5.0


@dataclass(frozen=True)
class Job:
    """One snapshot under evaluation: what identifies it, where results go, and who takes part.

    Attributes:
        folder: evaluation folder, shared by all ranks.
        distributed: this process's place among the ranks.
        should_stop: whether this rank was told to stop.
        seed: of all evaluation noise.
        checkpoint_step: training step of the snapshot.
        checkpoint_digest: what tells snapshots of the same step apart.
        method_settings: all else that changes a value (sampler, solver, tolerances), JSON-serialisable.
    """

    folder: Path
    distributed: Distributed
    should_stop: Callable[[], bool]
    seed: int
    checkpoint_step: int
    checkpoint_digest: str
    method_settings: Mapping[str, Any]

    def run(
        self, name: str, n_items: int, chunk_size: int, compute: Compute, **settings: Any
    ) -> tuple[dict[str, np.ndarray] | None, float]:
        """Run one evaluation through the engine, into ``<name>.npz``.

        Returns:
            The arrays (on rank 0, None elsewhere), and the seconds this call took; chunks that were finished
            before it are not in them.
        """
        fingerprint = {
            "evaluation": name,
            "checkpoint_step": self.checkpoint_step,
            "checkpoint_digest": self.checkpoint_digest,
            "seed": self.seed,
            "method_settings": dict(self.method_settings),
            **settings,
        }
        path = self.folder / f"{name}.npz"
        start = time.perf_counter()
        description = f"{name} at step {self.checkpoint_step}"
        arrays = run_chunks(
            path, n_items, chunk_size, compute, fingerprint, self.distributed, description, self.should_stop
        )
        return arrays, time.perf_counter() - start

    def on_main(self, compute: Callable[[], T]) -> T | None:
        """What ``compute`` returns on rank 0, None elsewhere. It may take long: nobody waits in one collective for it.

        Raises:
            Preempted: on every rank, when one was told to stop meanwhile.
            whatever ``compute`` raises, on rank 0, which ends the others.
        """
        future: Future[T] = Future()

        def work() -> None:
            try:
                future.set_result(compute())
            except BaseException as error:
                future.set_exception(error)

        if self.distributed.is_main:
            threading.Thread(target=work, daemon=True).start()  # it does not keep a process that stops from leaving
        while True:
            if self.distributed.is_main:
                wait([future], _SECONDS_BETWEEN_SIGNS)
            working = self.distributed.any(self.distributed.is_main and not future.done())
            if not working:
                return future.result() if self.distributed.is_main else None
            if self.distributed.any(self.should_stop()):
                raise Preempted("a reduction was stopped; what it is made of is kept")

    def account(self, n_samples: int, chunk_size: int, seconds: float) -> dict[str, Any]:
        """The part of a result that says what was done to get it."""
        return {
            "n_samples": n_samples,
            "seconds": seconds,
            "chunk_size": chunk_size,
            "checkpoint_step": self.checkpoint_step,
        }

    def noise(self, purpose: str, indices: torch.Tensor) -> Noise:
        return Noise(self.seed, purpose, indices, device=self.distributed.device)

    def read(self, dataset: Dataset, indices: torch.Tensor) -> torch.Tensor:
        """Samples of a data set, on this rank's device."""
        return dataset.read(indices.numpy()).to(self.distributed.device)


def dataset_fingerprint(dataset: Dataset) -> dict[str, Any]:
    """What tells data sets apart: name, shape, length, a checksum of the first, middle and last sample."""
    last = (dataset.length or N_ITEMS_OF_ENDLESS_SET) - 1
    probe = dataset.read(np.array([0, last // 2, last]))
    return {
        "dataset": dataset.name,
        "shape": list(dataset.shape),
        "length": dataset.length,
        "crc": zlib.crc32(probe.contiguous().numpy().tobytes()),
    }


def n_test_items(dataset: Dataset, requested: int | None) -> int:
    """How many items to evaluate: those asked for, at most all there are; by default all, or 10,000 of an
    endless set."""
    if requested is None:
        return dataset.length or N_ITEMS_OF_ENDLESS_SET
    if dataset.length is not None and requested > dataset.length:
        logger.warning("%s has %d items, not %d: taking all", dataset.name, dataset.length, requested)
        return dataset.length
    return requested


def mean_and_standard_error(values: np.ndarray) -> dict[str, Any]:
    """Mean of independent float64 values (N,) and its standard error, null for one value.

    A value that is not finite makes the mean so; their number is then given as well.
    """
    n_bad = int(np.count_nonzero(~np.isfinite(values)))
    with np.errstate(invalid="ignore"):
        error = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None
        entry: dict[str, Any] = {"value": float(values.mean()), "standard_error": error}
    if n_bad:
        logger.warning("%d of %d values are not finite, so neither is their mean", n_bad, len(values))
        entry["n_not_finite"] = n_bad
    return entry


def nfe_entry(n_evaluations: np.ndarray) -> dict[str, Any]:
    """Network evaluations (NFE) of batches (n_chunks,): their mean over chunks, and their sum."""
    return {"nfe": float(n_evaluations.mean()), "nfe_total": int(n_evaluations.sum())}


def record_result(job: Job, name: str, entry: Mapping[str, Any]) -> None:
    """Put one result into ``results.json``, beside what is there of the same snapshot; on rank 0."""
    path = job.folder / RESULTS
    checkpoint = {"step": job.checkpoint_step, "digest": job.checkpoint_digest}
    results = read_json(path)
    if not isinstance(results, dict) or results.get("checkpoint") != checkpoint:
        if results is not None:
            logger.warning("%s is of another snapshot and is replaced", path)
        results = {"checkpoint": checkpoint, "results": {}}
    results["results"][name] = dict(entry)
    write_json(path, results)
