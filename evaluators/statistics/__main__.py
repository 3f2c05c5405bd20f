"""``python -m evaluators.statistics --dataset NAME ... --output PATH.npz``: reference statistics of a data set."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from launch.options import LaunchOptions
from launch.standalone import run_on_ranks
from util.command_line import add_options
from util.errors import EXIT_FINISHED, EXIT_USAGE, UsageError
from util.option_values import flags_of

if TYPE_CHECKING:  # it imports torch, which the process that starts the ranks does not need
    from util.distributed import Distributed
    from util.stop import StopRequest

PARTIAL = ".partial"
DATASET_SPLITS = ("train", "test")


def main(arguments: Sequence[str]) -> int:
    """The exit code: 0 finished, 75 stopped with finished pieces on disk, 1 failed, 2 usage."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluators.statistics",
        description="Compute the reference statistics of a data set for the Frechet distance, on any number of ranks. "
        "Interrupted, the same command goes on.",
        allow_abbrev=False,
    )
    parser.add_argument("--dataset", required=True, help="data set, as main.py knows it")
    parser.add_argument("--data_location", default="data", help="folder of the data set's files")
    parser.add_argument("--split", default="train", choices=DATASET_SPLITS, help="part of the data set")
    parser.add_argument("--image_size", type=int, default=32, help="height and width in pixels")
    parser.add_argument("--image_channels", type=int, default=3, choices=(1, 3), help="colour channels")
    parser.add_argument("--fid_detector", default="pixels", help="pixels, inception, or a TorchScript file [pixels]")
    parser.add_argument("--fid_weights", type=Path, help="weights of inception [from the cache, else downloaded]")
    parser.add_argument(
        "--features", action="store_true",
        help="keep the features of each image too, which kernel distance, precision and recall compare",
    )  # fmt: skip
    parser.add_argument("--batch_size", type=int, default=128, help="images at a time")
    parser.add_argument("--output", required=True, help="statistics file to write (.npz)")
    add_options(parser, LaunchOptions)
    options = parser.parse_args(arguments)
    output = Path(options.output)
    launch = LaunchOptions(**{flag: getattr(options, flag) for flag in flags_of(LaunchOptions)})
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if output.suffix != ".npz":
            raise UsageError(f"--output {output}: the file's name has to end in .npz")
        code = run_on_ranks(
            "evaluators.statistics", arguments, launch, vars(options), output.with_suffix(PARTIAL),
            lambda distributed, stop: compute(options, output, distributed, stop),
        )  # fmt: skip
        if code == EXIT_FINISHED:
            with np.load(output, allow_pickle=False) as file:
                print(f"{output}: mean and covariance of {len(file['mu'])} features of {file['n']} images")
        return code
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE


def compute(options: argparse.Namespace, output: Path, distributed: Distributed, stop: StopRequest) -> None:
    """What each rank does. Raises as ``evaluators.reference_statistics.dataset_statistics`` and ``load_detector``."""
    import torch

    from evaluators.detectors import DetectorSettings, open_detector
    from evaluators.reference_statistics import dataset_statistics
    from util.data.dataset import DATASET_NAMES, open_dataset, prepare_dataset
    from util.data.inspection import inspect_datasets

    if options.dataset not in DATASET_NAMES:
        raise UsageError(f"--dataset {options.dataset}: choose one of {', '.join(DATASET_NAMES)}")
    if distributed.device.type == "cpu":
        torch.set_num_threads(1)  # how sums are split among threads shows in the last bits
    if distributed.local_rank == 0:
        prepare_dataset(options.dataset, options.data_location)
    distributed.barrier()
    dataset = open_dataset(
        options.dataset, options.split, options.data_location, options.image_size, options.image_channels, seed=0
    )
    inspect_datasets({options.split: dataset}, distributed, None)
    settings = DetectorSettings(options.fid_detector, options.fid_weights)
    detector = open_detector(settings, dataset.shape, distributed)
    stop.listen()
    folder = output.with_suffix(PARTIAL)
    dataset_statistics(dataset, detector, output, options.batch_size, distributed, stop, folder, options.features)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
