"""What is looked at in data before long work begins, said of them, and kept with the run."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from util.data.dataset import Dataset
from util.data.image_check import ImageCheck
from util.data.image_database import ImageDatabase
from util.data.image_folder import ImageFolder
from util.distributed import Distributed
from util.errors import UsageError
from util.run_file import read_run_file

logger = logging.getLogger(__name__)

MEMORY = Path("logs") / "checked_images.npy"
"""In the folder of a run: the images that were found good."""
_SECONDS_BETWEEN_SIGNS = 5.0


def contents(dataset: Dataset) -> dict[str, Any]:
    """How many images a data set has, in how many folders, and a digest of their names, as far as it has them."""
    found: dict[str, Any] = {"images" if dataset.is_image else "points": dataset.length}
    if isinstance(dataset, ImageFolder):
        found["folders"] = dataset.n_folders
    if isinstance(dataset, (ImageFolder, ImageDatabase)):
        found["names"] = dataset.digest
    return found


def in_words(found: Mapping[str, Any]) -> str:
    """``contents``, as in "12 images in 1 folder"."""
    counts = {kind: n for kind, n in found.items() if kind != "names" and n is not None}
    return " in ".join(f"{n} {kind if n != 1 else kind[:-1]}" for kind, n in counts.items()) or "points without end"


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """How the ``contents`` of splits, by name, differ; empty where they do not."""
    words = []
    for split, found in now.items():
        had, has = in_words(before.get(split, found)), in_words(found)
        if had != has:
            words.append(f"{split} had {had} and has {has}")
        elif before.get(split, found) != found:
            words.append(f"{split} has other files among its {has}")
    return "; ".join(words)


def check_images(
    datasets: Mapping[str, Dataset], distributed: Distributed, here: bool, memory: Path | None = None
) -> Callable[[], None]:
    """Check the image files of those data sets that are folders, on some ranks, while all others wait.

    Args:
        datasets: by split.
        distributed: this process's place.
        here: whether this rank is one that checks.
        memory: see ``ImageCheck``.

    Returns:
        what says what was found, and raises UsageError where files are broken; to be called where ``here``.
    """
    folders = [dataset for dataset in datasets.values() if isinstance(dataset, ImageFolder)] if here else []
    check = ImageCheck(folders, memory, visible=distributed.is_main)
    while distributed.any(check.advance(_SECONDS_BETWEEN_SIGNS)):
        pass
    return check.finish


def inspect_datasets(datasets: Mapping[str, Dataset], distributed: Distributed, folder: Path | None) -> None:
    """Say what the data sets hold, and find broken image files. Called by every rank; the first looks at the files.

    Args:
        datasets: by split.
        distributed: this process's place.
        folder: of the run, where good files are remembered; None for none.

    Raises:
        UsageError: on every rank: files are broken, or ranks see different data sets.
    """
    found = {split: contents(dataset) for split, dataset in datasets.items()}
    (main_host, seen), *others = distributed.gather((socket.gethostname(), found))
    said = ", ".join(f"{split} has {in_words(of_split)}" for split, of_split in seen.items())
    for rank, (host, other) in enumerate(others, start=1):
        if other != seen:
            raise UsageError(
                f"data: {said} on {main_host} (rank 0), and other files on {host} (rank {rank}): "
                "make them the same on all nodes"
            )
    if distributed.is_main:
        logger.info("data: %s", said)
    memory = folder / MEMORY if folder is not None else None
    distributed.from_main(check_images(datasets, distributed, distributed.is_main, memory))


def kept_contents(datasets: Mapping[str, Dataset], folder: Path, continues: bool) -> dict[str, Any]:
    """What ``run.json`` keeps of the data, under "data"; says where a run that continues had other data before.

    Args:
        datasets: by split.
        folder: of the run.
        continues: whether it has begun already, and this process speaks for it.
    """
    now = {split: contents(dataset) for split, dataset in datasets.items()}
    before = read_run_file(folder).get("data")
    if continues and isinstance(before, dict) and (differs := difference(before, now)):
        logger.warning("the data set has changed since this run began: %s", differs)
    return now
