"""Turn a folder of images into an LMDB database, resized and cut once instead of every time they are read.

    python -m util.convert_folder_to_lmdb --image_path=DIR --lmdb_path=DIR --split=train --image_size=64

Reads image_path/<split> and the folders below it and writes lmdb_path/<split>.lmdb. A conversion that was
stopped goes on where it stopped when the command is given again.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from util.data.image_conversion import convert_images, run_conversion
from util.data.image_database import Metadata
from util.data.image_folder import list_images, read_image


def convert_folder(folder: Path, database: Path, image_size: int, image_channels: int) -> Metadata:
    """Write ``database`` from the images in ``folder``; raises what ``convert_images`` raises."""

    def read_images(path: Path, _: int) -> Iterator[tuple[np.ndarray, int]]:
        yield read_image(path, image_size, image_channels), path.stat().st_size

    return convert_images(database, folder, list_images(folder), read_images)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Turn a folder of images into an LMDB database.")
    parser.add_argument(
        "--image_path", type=Path, required=True, help="folder that holds train/ and validation/"
    )
    parser.add_argument(
        "--lmdb_path", type=Path, required=True, help="folder for train.lmdb and validation.lmdb"
    )
    parser.add_argument(
        "--split", choices=["train", "validation"], default="train", help="which part to convert"
    )
    parser.add_argument("--image_size", type=int, required=True, help="height and width in pixels")
    parser.add_argument(
        "--image_channels", type=int, choices=[1, 3], default=3, help="1 for grey, 3 for colour"
    )
    options = parser.parse_args(arguments)
    folder, database = options.image_path / options.split, options.lmdb_path / f"{options.split}.lmdb"
    return run_conversion(
        lambda: convert_folder(folder, database, options.image_size, options.image_channels)
    )


if __name__ == "__main__":
    sys.exit(main())
