"""``python -m benchmarks.snapshot``: how long a snapshot holds up the training, against ``torch.save`` in its place.

Of the network of a configuration with its average and an optimiser that has taken a step. Variants take turns; each
row is the median and the range. ``first`` is the first snapshot of a run, after the memory was taken beside the
training; ``on disk`` is from the call to the last rename, with and without reading the file back.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from main import parse_config
from trainers.systems import build_method
from util.distributed import Distributed
from util.snapshot import SnapshotWriter


def trained_state(config_file: str, device: torch.device) -> dict[str, Any]:
    """What a run of that configuration saves."""
    method = build_method(parse_config(["-cc", config_file]), Distributed(device=device))
    for updater in method.updaters.values():
        for parameter in updater.network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        updater.optimizer.step()
        updater.optimizer.zero_grad(set_to_none=True)
    return method.state.state_dict()


def n_bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    entries = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return sum(map(n_bytes, entries))


def row(name: str, seconds: list[float], base: float) -> str:
    median = statistics.median(seconds)
    return f"{name:<36}{median:8.3f} s ({min(seconds):.3f} to {max(seconds):.3f}) {median / base:8.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.snapshot", description=__doc__)
    parser.add_argument("-cc", dest="config", default="configs/cld/cifar10.txt", help="configuration of the network")
    parser.add_argument("--n_repeats", type=int, default=3, help="snapshots timed of each kind, after the first")
    parser.add_argument("--folder", type=Path, default=None, help="where to write; a temporary folder otherwise")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args()
    state = trained_state(options.config, torch.device(options.device))
    plain: list[float] = []
    stalls: dict[str, list[float]] = {"read_back": [], "none": []}
    on_disk: dict[str, list[float]] = {"read_back": [], "none": []}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        # One after the other holds memory for its copies.
        first = []
        for verify in stalls:
            writer = SnapshotWriter(Path(folder), lambda _snapshot: None, verify == "read_back")
            writer.prepare(state)
            first.append(writer.save(state, keep=False))
            writer.wait()
            for _ in range(options.n_repeats):
                began = time.perf_counter()
                stalls[verify].append(writer.save(state, keep=False))
                writer.wait()
                on_disk[verify].append(time.perf_counter() - began)
                began = time.perf_counter()
                torch.save(state, Path(folder) / "plain.pth")
                plain.append(time.perf_counter() - began)
            writer.close()
    base = statistics.median(plain)
    print(f"{options.config}: {n_bytes(state) / 1e9:.2f} GB, {options.device}, {torch.get_num_threads()} threads")
    print(f"{'':<36}{'seconds':>10}{'ratio':>26}")
    print(row("torch.save", plain, base))
    print(row("held up, first", first, base))
    print(row("held up", stalls["read_back"] + stalls["none"], base))
    for verify, seconds in on_disk.items():
        print(row(f"on disk, snapshot_verify {verify}", seconds, base))


if __name__ == "__main__":
    main()
