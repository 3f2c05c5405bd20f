"""Turn a data set, in the form in which it is published, into an LMDB database.

    python -m util.convert_to_lmdb FORMAT SOURCE DESTINATION [--split SPLIT]

writes DESTINATION/<split>.lmdb, which ``--data_location DESTINATION`` then reads. Any number of ranks share one
database through the page cache, and images are resized and cut once instead of every time they are read. A
conversion that was stopped goes on where it stopped when the command is given again.

FORMAT is the name of the data set; each says with --help what SOURCE has to hold.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from util.data import celeba, downsampled_imagenet, mnist
from util.data.cifar10 import cifar10_sources, read_cifar10_source
from util.data.image_conversion import ImageReader, convert_images, reader_of_arrays, reader_of_files, run_conversion
from util.data.image_database import Metadata
from util.data.image_folder import ImageFolder, is_litter, open_image_folder
from util.data.inspection import check_images, contents, in_words
from util.data.tfrecord import read_image_example, read_records
from util.distributed import Distributed
from util.errors import UsageError

Plan = ImageFolder | tuple[list[Path], ImageReader]


@dataclass(frozen=True)
class Format:
    """What can be converted.

    Attributes:
        description: what SOURCE has to hold.
        splits: the parts of the set; the first is the default.
        plan: given the options, a set of image files, or other files in their order and what reads one of them.
    """

    description: str
    splits: tuple[str, ...]
    plan: Callable[[argparse.Namespace], Plan]


def _plan_folder(options: argparse.Namespace) -> Plan:
    return open_image_folder(options.split, options.source, options.image_size, options.image_channels)


def _plan_mnist(options: argparse.Namespace) -> Plan:
    read = partial(mnist.read_mnist_source, image_size=options.image_size)
    return [mnist.mnist_source(options.split, options.source)], reader_of_arrays(read)


def _plan_cifar10(options: argparse.Namespace) -> Plan:
    read = partial(read_cifar10_source, split=options.split)
    return cifar10_sources(options.split, options.source), reader_of_arrays(read)


def _plan_imagenet(options: argparse.Namespace) -> Plan:
    name, split = options.format, "train" if options.split == "train" else "test"
    sources = downsampled_imagenet.imagenet_sources(name, split, options.source)
    if downsampled_imagenet.is_batch(sources[0]):
        return sources, reader_of_arrays(partial(downsampled_imagenet.read_imagenet_batch, name=name))
    return downsampled_imagenet.imagenet_folder(name, sources, options.source)


def _plan_celeba_64(options: argparse.Namespace) -> Plan:
    return celeba.open_celeba(options.split, options.source)


def _plan_celeba_256(options: argparse.Namespace) -> Plan:
    folder = options.source / options.split
    sources = sorted(path for path in folder.glob("*.tfrecords") if not is_litter(path.name))
    if not sources:
        raise UsageError(f"{folder}: no *.tfrecords there: give the folder that holds {options.split}/")
    return sources, read_tfrecord_images


def read_tfrecord_images(path: Path, offset: int) -> Iterator[tuple[np.ndarray, int]]:
    """An ``ImageReader`` of TFRecords.

    Raises:
        UsageError: a damaged record, named by file and byte offset.
    """
    for data, start, after in read_records(path, offset):
        try:
            image = read_image_example(data)
        except ValueError as error:
            raise UsageError(f"{path}, record at byte {start}: {error}: fetch the file again") from None
        yield image, after


_IMAGENET = (
    "ten files train_data_batch_1... and val_data, pickled or .npz (the new release), or folders of PNG files"
    " train_{0}x{0} and valid_{0}x{0} (the old one)"
)
FORMATS = {
    "mnist": Format("train-images-idx3-ubyte and t10k-images-idx3-ubyte, plain or .gz", ("train", "test"), _plan_mnist),
    "cifar10": Format("cifar-10-python.tar.gz, or the folder in it", ("train", "test"), _plan_cifar10),
    "imagenet32": Format(_IMAGENET.format(32), ("train", "validation"), _plan_imagenet),
    "imagenet_64": Format(_IMAGENET.format(64), ("train", "validation"), _plan_imagenet),
    "celeba_64": Format(
        "img_align_celeba and list_eval_partition.txt; cut to 140 x 140 and resized",
        ("train", "validation", "test"),
        _plan_celeba_64,
    ),
    "celeba_256": Format(
        "the TFRecords of CelebA-HQ in train and validation, as published with Glow (arXiv 1807.03039)",
        ("train", "validation"),
        _plan_celeba_256,
    ),
    "folder": Format(
        "a folder of images for each split; resized and cut", ("train", "validation", "test"), _plan_folder
    ),
}


def convert(options: argparse.Namespace) -> Metadata:
    """Write the database that the command's options ask for, or finish doing so.

    Raises:
        UsageError: no such files, or a damaged one; names the file and the place in it.
        RunFailed: the database cannot be written.
    """
    plan = FORMATS[options.format].plan(options)
    write = partial(convert_images, options.destination / f"{options.split}.lmdb", options.source, form=options.format)
    if not isinstance(plan, ImageFolder):
        shape = (options.image_size, options.image_size, 1) if options.format == "mnist" else None
        return write(*plan, shape=shape)
    print(f"{options.split}: {in_words(contents(plan))}", flush=True)
    n_channels, size, _ = plan.shape
    read = reader_of_files(lambda path: plan.read_file(path, size, n_channels))

    def check(paths: list[Path]) -> None:
        check_images({options.split: replace(plan, paths=paths)}, Distributed(), here=True)()

    return write(plan.paths, read, shape=(size, size, n_channels), check=check)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command's options: format, source, destination, split, and what else the format has."""
    parser = argparse.ArgumentParser(
        prog="python -m util.convert_to_lmdb", description="Turn a published data set into an LMDB database."
    )
    formats = parser.add_subparsers(dest="format", required=True, metavar="FORMAT")
    for name, known in FORMATS.items():
        one = formats.add_parser(name, help=known.description, description=f"SOURCE holds {known.description}.")
        one.add_argument("source", type=Path, metavar="SOURCE", help="folder that holds the files")
        one.add_argument("destination", type=Path, metavar="DESTINATION", help="folder for the databases")
        one.add_argument("--split", choices=known.splits, default=known.splits[0], help="which part to convert")
        if name == "folder":
            one.add_argument("--image_size", type=int, required=True, help="height and width in pixels")
            one.add_argument("--image_channels", type=int, choices=(1, 3), default=3, help="grey or colour")
        elif name == "mnist":
            sizes = (mnist.SIZE, mnist.PADDED_SIZE)
            one.add_argument("--image_size", type=int, choices=sizes, default=sizes[0], help="32 adds a black border")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = parse(arguments)
    return run_conversion(lambda: convert(options))


if __name__ == "__main__":
    sys.exit(main())
