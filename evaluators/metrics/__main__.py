"""``python -m evaluators.metrics A B``: metrics of images A compared with images B, with no model and no run."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launch.options import LaunchOptions
from launch.standalone import run_on_ranks
from util.command_line import add_options
from util.errors import EXIT_FINISHED, EXIT_USAGE, UsageError
from util.option_values import flags_of

if TYPE_CHECKING:  # it imports torch, which the process that starts the ranks does not need
    from util.distributed import Distributed
    from util.stop import StopRequest


def main(arguments: Sequence[str]) -> int:
    """The exit code: 0 finished, 75 stopped with finished pieces on disk, 1 failed, 2 usage."""
    sets = "a folder of images, an LMDB database, or an .npz of images (arr_0, samples, images) or features"
    parser = argparse.ArgumentParser(
        prog="python -m evaluators.metrics",
        description=f"Metrics of images A compared with images B, on any number of ranks. Each is {sets}. Interrupted, "
        "the same command goes on.",
        allow_abbrev=False,
    )
    parser.add_argument("generated", metavar="A", type=Path, help="generated images")
    parser.add_argument("real", metavar="B", type=Path, help="real images")
    parser.add_argument("--metrics", default="all", help="names with commas, or all that the detector allows [all]")
    parser.add_argument("--fid_detector", default="pixels", help="pixels, inception, or a TorchScript file [pixels]")
    parser.add_argument("--fid_weights", type=Path, help="weights of inception [from the cache, else downloaded]")
    parser.add_argument("--batch_size", type=int, default=64, help="images at a time [64]")
    parser.add_argument("--output", type=Path, default=Path("metrics.json"), help="file to write [metrics.json]")
    add_options(parser, LaunchOptions)
    options = parser.parse_args(arguments)
    launch = LaunchOptions(**{flag: getattr(options, flag) for flag in flags_of(LaunchOptions)})
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder = options.output.with_suffix(".partial")
    try:
        if options.output.suffix != ".json":
            raise UsageError(f"--output {options.output}: the file's name has to end in .json")

        def work(distributed: Distributed, stop: StopRequest) -> None:
            from evaluators.compare_sets import compare_sets  # these import torch
            from evaluators.detectors import DetectorSettings

            compare_sets(
                options.generated, options.real, options.metrics,
                DetectorSettings(options.fid_detector, options.fid_weights), options.batch_size, options.output, folder,
                distributed, stop,
            )  # fmt: skip

        code = run_on_ranks("evaluators.metrics", arguments, launch, vars(options), folder, work)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    if code == EXIT_FINISHED:
        print(table(json.loads(options.output.read_text(encoding="utf-8"))["results"]))
        print(f"results are in {options.output}")
    return code


def table(entries: dict[str, dict[str, object]]) -> str:
    """A line for each entry: its name, value and spread, and what it is of."""
    width = max(map(len, entries))
    lines = []
    for name, entry in entries.items():
        error = entry.get("standard_error", entry.get("standard_deviation"))
        spread = f" +- {error:.3g}" if isinstance(error, float) else ""
        lines.append(f"{name:<{width}}  {entry['value']:.8g}{spread}  ({entry['unit']}, {entry['n_samples']} images)")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
