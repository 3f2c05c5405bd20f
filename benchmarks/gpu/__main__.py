"""See ``benchmarks.gpu``."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from benchmarks.gpu.checks import exact_resume, steps_against_the_cpu, two_ranks_on_one_device
from benchmarks.gpu.models import SMALL
from benchmarks.gpu.rates import evaluations, snapshots, training
from benchmarks.gpu.report import Table, write_report


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="What works on a GPU, and how fast.")
    parser.add_argument("--minutes", type=float, default=5.0, help="no rate is begun after so long; checks always are")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small networks and few of them: whether the script works")
    parser.add_argument("--batch", type=int, default=64, help="samples of a step whose rate is measured")
    parser.add_argument("--folder", type=Path, default=Path("work_dir/gpu"), help="where gpu.md and gpu.json go")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("torch sees no GPU here; use --device cpu --tiny, or check the driver", file=sys.stderr)
        return 2
    device = torch.device(options.device, 0) if options.device == "cuda" else torch.device("cpu")
    # As a run has it (launch/worker.py): TF32 where --tf32 asks for it.
    torch.backends.cudnn.allow_tf32 = False
    end = time.monotonic() + 60 * options.minutes

    def in_time() -> bool:
        return time.monotonic() < end

    tables: list[Table] = []
    for make in (
        lambda: steps_against_the_cpu(device),
        lambda: exact_resume(device, ("cld on points", "ddpm") if options.tiny else tuple(SMALL)),
        lambda: two_ranks_on_one_device(device),
        lambda: training(device, 2 if options.tiny else options.batch, options.tiny, in_time),
        lambda: snapshots(device, options.tiny),
        lambda: evaluations(device, options.tiny, in_time),
    ):
        tables.append(make())
        # After each, so that what is known stays known.
        text = write_report(options.folder, device, tables)
    print(text)
    failures = [failure for table in tables for failure in table.failures]
    print("\n".join(["Failed:", *failures]) if failures else "Everything that has to hold does.")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
