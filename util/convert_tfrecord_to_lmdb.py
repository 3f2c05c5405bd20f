"""Turn the TFRecords of CelebA-HQ-256 into LMDB databases, without TensorFlow.

    python util/convert_tfrecord_to_lmdb.py --dataset=celeba --tfr_path=DIR --lmdb_path=DIR --split=train

Reads tfr_path/<split>/*.tfrecords, the 256 x 256 release of Glow (Kingma and Dhariwal, arXiv 1807.03039), and
writes lmdb_path/<split>.lmdb. A conversion that was stopped goes on where it stopped when the command is
given again.
"""

import os
import sys

if __name__ == "__main__" and not __package__:
    # As a script, Python would look for modules in this file's folder, where some are named like its own.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from util.data.image_conversion import convert_images, run_conversion
from util.data.image_database import Metadata
from util.data.tfrecord import read_image_example, read_records
from util.errors import UsageError


def _read_images(path: Path, offset: int) -> Iterator[tuple[np.ndarray, int]]:
    for data, start, after in read_records(path, offset):
        try:
            image = read_image_example(data)
        except ValueError as error:
            raise UsageError(f"{path}, record at byte {start}: {error}: fetch the file again") from None
        yield image, after


def convert_tfrecords(tfr_path: Path, lmdb_path: Path, split: str) -> Metadata:
    """Write ``lmdb_path/<split>.lmdb`` from ``tfr_path/<split>/*.tfrecords``, or finish doing so.

    Raises:
        UsageError: no such files, or a damaged one; names the file and the byte offset of the record.
        RunFailed: the database cannot be written.
    """
    folder = tfr_path / split
    sources = sorted(folder.glob("*.tfrecords"))
    if not sources:
        raise UsageError(f"{folder}: no *.tfrecords there: give the folder that holds {split}/ as --tfr_path")
    return convert_images(lmdb_path / f"{split}.lmdb", folder, sources, _read_images)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Turn the TFRecords of CelebA-HQ-256 into LMDB databases.")
    parser.add_argument("--dataset", choices=["celeba"], default="celeba", help="which release of TFRecords")
    parser.add_argument(
        "--tfr_path", type=Path, required=True, help="folder that holds train/ and validation/"
    )
    parser.add_argument(
        "--lmdb_path", type=Path, required=True, help="folder for train.lmdb and validation.lmdb"
    )
    parser.add_argument(
        "--split", choices=["train", "validation"], default="train", help="which part to convert"
    )
    options = parser.parse_args(arguments)
    return run_conversion(lambda: convert_tfrecords(options.tfr_path, options.lmdb_path, options.split))


if __name__ == "__main__":
    sys.exit(main())
