"""How fast it is: training, snapshots, sampling, likelihoods."""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.checks import first_line
from benchmarks.gpu.models import PUBLISHED, SMALL, Model, wait
from benchmarks.gpu.report import FAILED, SKIPPED, Table
from util.snapshot import SnapshotWriter

N_WARM_UP, N_REPEATS = 2, 5
PRECISIONS: dict[str, tuple[str, ...]] = {
    "fp32": (),
    "TF32": ("--tf32", "true"),
    "bf16": ("--autocast_train", "true", "--tf32", "true"),
    "bf16, compiled": ("--autocast_train", "true", "--tf32", "true", "--compile", "true"),
}
PEAKS = {
    "H100": {"fp32": 67e12, "TF32": 495e12, "bf16": 989e12},
    "H200": {"fp32": 67e12, "TF32": 495e12, "bf16": 989e12},
    "A100": {"fp32": 19.5e12, "TF32": 156e12, "bf16": 312e12},
    "L40S": {"fp32": 91.6e12, "TF32": 183e12, "bf16": 362e12},
    "RTX 4090": {"fp32": 82.6e12, "TF32": 82.6e12, "bf16": 165e12},
}
"""Operations a second of dense matrix products, from the makers' data sheets (SXM where there are several)."""


def peak(device: torch.device, precision: str) -> float | None:
    """Of this card, where it is known."""
    if device.type != "cuda":
        return None
    name, kind = torch.cuda.get_device_name(device), precision.split(",")[0]
    return next((rates[kind] for card, rates in PEAKS.items() if card in name), None)


def seconds(device: torch.device, act: Callable[[], Any], n_repeats: int = N_REPEATS) -> float:
    """The median of some repetitions, each ended by waiting for the device."""
    found = []
    for _ in range(n_repeats):
        wait(device)
        started = time.perf_counter()
        act()
        wait(device)
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def training(device: torch.device, batch_size: int, tiny: bool, in_time: Callable[[], bool]) -> Table:
    """Images a second of published networks, in each precision."""
    table = Table(
        "Training",
        f"Images a second of whole steps, the median of {N_REPEATS} after {N_WARM_UP}, random data on the device, "
        f"batch {batch_size} or the largest half, quarter, ... of it that fits. Operations are those of the matrix "
        "products and convolutions of a step, as PyTorch counts them; the fraction is that of the card's data sheet.",
    )
    for config in tuple(SMALL.values())[:1] if tiny else PUBLISHED:
        name = config.removeprefix("configs/").removesuffix(".txt")
        for precision in ("fp32", "bf16") if tiny else PRECISIONS:
            row: dict[str, Any] = {"setting": name, "precision": precision}
            table.rows.append(row)
            if not in_time():
                row["images/s"] = SKIPPED
                continue
            size = batch_size
            while size >= 1:
                try:
                    row |= _training(config, device, size, precision)
                    break
                except torch.cuda.OutOfMemoryError:
                    size //= 2
                except Exception as error:
                    row["images/s"] = f"{FAILED}: {first_line(error)}"
                    table.failures.append(f"{name}, {precision}: {row['images/s']}")
                    break
            gc.collect()
    return table


def _training(config: str, device: torch.device, batch_size: int, precision: str) -> dict[str, Any]:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    model = Model(config, device, batch_size, *PRECISIONS[precision])
    for _ in range(N_WARM_UP):
        model.prepare()()
    steps = [model.prepare() for _ in range(N_REPEATS)]
    took = seconds(device, lambda: steps.pop()())
    found: dict[str, Any] = {"batch": batch_size, "images/s": batch_size / took, "ms a step": 1000 * took}
    if "compiled" not in precision:
        with FlopCounterMode(display=False) as counter:
            model.prepare()()
        rate = counter.get_total_flops() / took
        found |= {"TFLOP/s": rate / 1e12}
        if (most := peak(device, precision)) is not None:
            found["of the peak"] = rate / most
    if device.type == "cuda":
        found["GiB"] = torch.cuda.max_memory_allocated(device) / 2**30
    return found


def snapshots(device: torch.device, tiny: bool) -> Table:
    """For how long a snapshot holds training up, against ``torch.save``."""
    table = Table(
        "Snapshots", "Seconds for which training is held up, against `torch.save` of the same state; medians of 3."
    )
    model = Model(SMALL["cld"] if tiny else PUBLISHED[0], device, 1)
    model.prepare()()
    state = {**model.method.state.state_dict(), "config": model.config.flat()}
    with tempfile.TemporaryDirectory() as folder:
        writer = SnapshotWriter(Path(folder), lambda _snapshot: None)
        held_up, on_disk = [], []
        for _ in range(3):
            wait(device)
            started = time.perf_counter()
            held_up.append(writer.save(state, keep=False))
            writer.wait()
            on_disk.append(time.perf_counter() - started)
        writer.close()
        plain = seconds(device, lambda: torch.save(state, Path(folder) / "plain.pth"), 3)
    table.rows.append({
        "held up": statistics.median(held_up), "on disk after": statistics.median(on_disk), "torch.save": plain,
        "ratio": statistics.median(held_up) / plain,
    })  # fmt: skip
    return table


def evaluations(device: torch.device, tiny: bool, in_time: Callable[[], bool]) -> Table:
    """Samples and likelihoods of each system's small setting."""
    table = Table(
        "Sampling and likelihoods",
        "Small settings of each system, one batch each: network evaluations a second, and samples times evaluations.",
    )
    n = 2 if tiny else 64
    quick = {"scoreflow": ("--bound_n_times", "3"), "ddpm": ("--bound_n_labels", "5")}
    loose = ("--likelihood_rtol", "1e-2", "--likelihood_atol", "1e-2")
    for name in ("cld", "ddpm") if tiny else SMALL:
        flags = (*quick.get(name, ()), *(() if name in ("ddpm", "hsivi") else loose))
        model = Model(SMALL[name], device, n, *flags)
        model.prepare()()
        batch = model.data(n, 0)
        works: dict[str, Callable[[], int]] = {
            "samples": lambda model=model: model.method.sample(model.noise(n)).n_evaluations,  # type: ignore[misc]
        }
        for kind, likelihood in model.method.likelihoods.items():
            works[kind] = lambda likelihood=likelihood, model=model, batch=batch: (  # type: ignore[misc]
                likelihood(batch, model.noise(n)).n_evaluations
            )
        for kind, work in works.items():
            row: dict[str, Any] = {"system": name, "what": kind}
            table.rows.append(row)
            if not in_time():
                row["seconds"] = SKIPPED
                continue
            try:
                wait(device)
                started = time.perf_counter()
                n_evaluations = work()
                wait(device)
                took = time.perf_counter() - started
            except Exception as error:
                row["seconds"] = f"{FAILED}: {first_line(error)}"
                table.failures.append(f"{name}, {kind}: {row['seconds']}")
                continue
            row |= {"seconds": took, "evaluations": n_evaluations}
            if n_evaluations:
                row |= {"evaluations/s": n_evaluations / took, "samples x evaluations/s": n * n_evaluations / took}
    return table
