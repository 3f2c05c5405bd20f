"""The command of the published CLD-SGM program for CelebA-HQ-256, as ``python -m util.convert_to_lmdb celeba_256``.

python util/convert_tfrecord_to_lmdb.py --dataset=celeba --tfr_path=DIR --lmdb_path=DIR --split=train
"""

import os
import sys

if __name__ == "__main__" and not __package__:
    # As a script, Python would look for modules in this file's folder, where some are named like its own.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import argparse

from util import convert_to_lmdb


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Turn the TFRecords of CelebA-HQ-256 into LMDB databases.")
    parser.add_argument("--dataset", choices=["celeba"], default="celeba", help="which release of TFRecords")
    parser.add_argument("--tfr_path", required=True, help="folder that holds train/ and validation/")
    parser.add_argument("--lmdb_path", required=True, help="folder for train.lmdb and validation.lmdb")
    parser.add_argument("--split", choices=["train", "validation"], default="train", help="which part to convert")
    options = parser.parse_args(arguments)
    return convert_to_lmdb.main(["celeba_256", options.tfr_path, options.lmdb_path, "--split", options.split])


if __name__ == "__main__":
    sys.exit(main())
