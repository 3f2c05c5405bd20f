"""Metrics of one set of images compared with another: what ``python -m evaluators.metrics`` does on each rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from evaluators.detectors import Detector, DetectorSettings, open_detector
from evaluators.engine import run_chunks
from evaluators.image_sets import open_set, set_fingerprint
from evaluators.job import Job
from evaluators.metrics.frechet_distance import compute_statistics
from evaluators.sample_metrics import FEATURES, STATISTICS, Entry, Measured, Reference, chosen_metrics
from util.data.dataset import Dataset
from util.distributed import Distributed
from util.errors import UsageError
from util.files import write_json
from util.stop import StopRequest


def compare_sets(
    generated: Path,
    real: Path,
    metrics: str,
    detector_settings: DetectorSettings,
    batch_size: int,
    output: Path,
    folder: Path,
    distributed: Distributed,
    stop: StopRequest,
) -> None:
    """Compare and write ``output`` (JSON: the two sets, and entries under "results"), on all ranks together.

    Args:
        generated, real: what ``evaluators.image_sets.open_set`` opens.
        metrics: names of ``evaluators.sample_metrics.METRICS`` with commas, or "all".
        detector_settings: not used where both sets are features.
        batch_size: images at a time.
        output: file to write.
        folder: for features, shared by all ranks.
        distributed: this process's place.
        stop: asked for by a signal.

    Raises:
        UsageError: sets that cannot be read, or that do not go together.
        Preempted: some rank was asked to stop; finished chunks are kept.
    """
    if distributed.device.type == "cpu":
        torch.set_num_threads(1)  # how sums are split among threads shows in the last bits
    sets = {"a": open_set(generated), "b": open_set(real)}
    images = [found for found in sets.values() if not isinstance(found, np.ndarray)]
    if len(images) == 2 and images[0].shape != images[1].shape:
        shapes = " and ".join("x".join(map(str, found.shape)) for found in images)
        raise UsageError(f"{generated} and {real}: images of {shapes} (channels, height, width); make them alike")
    detector = open_detector(detector_settings, images[0].shape, distributed) if images else None
    names = [name.strip() for name in metrics.split(",") if name.strip()]
    available = (FEATURES,) if detector is None or isinstance(sets["a"], np.ndarray) else detector.gives
    chosen_metrics(names, available, "--metrics")
    stop.listen()
    paths = {"a": generated, "b": real}
    arrays = {
        name: _features(folder / f"{name}_features.npz", paths[name], found, detector, batch_size, distributed, stop)
        for name, found in sets.items()
    }
    job = Job(folder, distributed, stop, 0, 0, "", {})
    results = job.on_main(lambda: _reduce(arrays["a"], arrays["b"], names, detector, str(distributed.device)))
    if results is not None:
        description = {"generated": str(generated), "real": str(real)}
        write_json(output, {**description, "results": results})


def _features(
    path: Path,
    source: Path,
    found: Dataset | np.ndarray,
    detector: Detector | None,
    batch_size: int,
    distributed: Distributed,
    should_stop: Callable[[], bool],
) -> Mapping[str, np.ndarray] | None:
    """What the detector gives of a set, on rank 0."""
    if isinstance(found, np.ndarray):
        return {FEATURES: found}
    assert detector is not None
    assert found.length is not None

    def compute(indices: torch.Tensor) -> dict[str, torch.Tensor]:
        return detector.outputs(found.read(indices.numpy()).to(distributed.device))

    fingerprint = {
        "evaluation": "features of a set", "set": set_fingerprint(source, found), "detector": detector.name,
        "detector_digest": detector.digest,
    }  # fmt: skip
    description = f"features of {source}"
    return run_chunks(path, found.length, batch_size, compute, fingerprint, distributed, description, should_stop)


def _reduce(
    generated: Mapping[str, np.ndarray] | None,
    real: Mapping[str, np.ndarray] | None,
    names: list[str],
    detector: Detector | None,
    device: str,
) -> dict[str, Entry]:
    assert generated is not None
    assert real is not None
    n_features = [arrays[FEATURES].shape[1] for arrays in (generated, real)]
    if n_features[0] != n_features[1]:
        raise UsageError(f"A has {n_features[0]} features and B {n_features[1]}; use those of one detector")
    entries: dict[str, Entry] = {}
    try:
        metrics = chosen_metrics(names, generated, "--metrics")
        needs_statistics = any(metric.compares_with == STATISTICS for metric in metrics)
        statistics = compute_statistics(real[FEATURES]) if needs_statistics else None
        reference = Reference(statistics, real[FEATURES], len(real[FEATURES]))
        name = detector.name if detector is not None else "given features"
        for metric in metrics:
            entries |= metric.reduce(Measured(generated, reference, name, device))
    except ValueError as error:
        raise UsageError(f"metrics: {error}") from None
    made = {"detector": name, "n_samples": len(generated[FEATURES])}
    if detector is not None and detector.digest:
        made["detector_digest"] = detector.digest
    return {key: {**entry, **made} for key, entry in entries.items()}
