"""Writing an image database from other files, so that it can be stopped at any instant and taken up again."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import lmdb
import numpy as np
from tqdm import tqdm

from util.data.image_database import (
    METADATA_KEY,
    SOURCES_KEY,
    Metadata,
    image_key,
    pack_image,
    read_metadata,
    read_sources,
)
from util.errors import EXIT_FAILED, EXIT_FINISHED, EXIT_USAGE, RunFailed, UsageError

ImageReader = Callable[[Path, int], Iterator[tuple[np.ndarray, int]]]
"""Given a source file and a byte offset in it, yields each image from there on as uint8 (H, W, C) with the
offset after it. The last offset is the size of the file."""


def reader_of_arrays(read_array: Callable[[Path], np.ndarray]) -> ImageReader:
    """A reader of sources that are read whole: ``read_array`` gives uint8 (N, C, H, W).

    Offsets are the file's bytes in proportion to the images, which only have to tell images apart.
    """

    def read_images(path: Path, offset: int) -> Iterator[tuple[np.ndarray, int]]:
        images, size = read_array(path), path.stat().st_size
        if size < len(images):
            raise UsageError(f"{path}: {len(images)} images in {size} bytes: they cannot all be different")
        for row in range(-(-offset * len(images) // size), len(images)):
            yield images[row].transpose(1, 2, 0), size * (row + 1) // len(images)

    return read_images


def reader_of_files(read_file: Callable[[Path], np.ndarray]) -> ImageReader:
    """A reader of sources that are one image each: ``read_file`` gives uint8 (H, W, C)."""

    def read_images(path: Path, _: int) -> Iterator[tuple[np.ndarray, int]]:
        yield read_file(path), path.stat().st_size

    return read_images


_BYTES_PER_TRANSACTION = 32 << 20
_SECONDS_PER_LINE = 30.0


def convert_images(
    database: Path,
    folder: Path,
    sources: list[Path],
    read_images: ImageReader,
    *,
    form: str = "",
    shape: tuple[int, int, int] | None = None,
    check: Callable[[list[Path]], None] = lambda _: None,
    map_size: int = 1 << 30,
) -> Metadata:
    """Write every image of ``sources`` to ``database``, or finish doing so.

    Images and the record of how far the sources have been read are committed together. What was committed
    survives a kill; what was not is read again.

    Args:
        database: the folder of the LMDB database.
        folder: the folder below which ``sources`` lie; only paths relative to it are recorded.
        sources: files, in the order in which their images are to be numbered.
        read_images: reads one source.
        form: what that reads them as.
        shape: (H, W, C) of every image, where it is known before.
        check: given the sources that are still to be read, raises UsageError where that would fail.
        map_size: address space to begin with, in bytes; doubled as often as it is needed.

    Returns:
        The metadata of the complete database.

    Raises:
        UsageError: a damaged source, images of differing shapes, or a database made from other files or otherwise.
        RunFailed: the database cannot be written, as when the disk is full.
    """
    asked = Metadata(shape, 0, 0, False, form)
    try:
        identity = [(str(source.relative_to(folder)), source.stat().st_size) for source in sources]
    except OSError as error:
        raise UsageError(f"{error.filename}: cannot be read ({error.strerror}): check the file") from None
    try:
        database.mkdir(parents=True, exist_ok=True)
        with lmdb.open(str(database), map_size=map_size) as environment:
            return _convert(environment, database, sources, identity, read_images, asked, check)
    except lmdb.Error as error:
        # LMDB may call a full disk an input/output error.
        free = shutil.disk_usage(database).free >> 20
        full = free == 0 or any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT))
        raise RunFailed(
            f"{database}: cannot be written: {'disk full' if full else error} ({free} MiB are free there); make room"
            " and give the same command again, which goes on where this one stopped"
        ) from None
    except OSError as error:
        raise RunFailed(f"{database}: cannot be made ({error.strerror}): choose another place") from None


def _convert(
    environment: lmdb.Environment,
    database: Path,
    sources: list[Path],
    identity: list[tuple[str, int]],
    read_images: ImageReader,
    asked: Metadata,
    check: Callable[[list[Path]], None],
) -> Metadata:
    with environment.begin() as transaction:
        stored = read_metadata(database, transaction)
        if stored is None and transaction.stat()["entries"] > 0:
            raise UsageError(f"{database}: an LMDB database of another tool: remove it or choose another place")
        known = read_sources(database, transaction)
    metadata = stored or asked
    if asked.shape is not None and metadata.shape not in (None, asked.shape):
        raise UsageError(
            f"{database}: its images are {_in_words(metadata.shape)}, and {_in_words(asked.shape)} was asked for:"
            " remove it or choose another place"
        )
    if asked.form and metadata.form not in ("", asked.form):
        raise UsageError(
            f"{database}: was made as {metadata.form}, not {asked.form}: remove it or choose another place"
        )
    if stored is not None and not _made_from(metadata, known, identity):
        raise UsageError(
            f"{database}: was made from other files than those given now: remove it or choose another place"
        )
    if metadata.complete:
        return metadata
    # An empty file has no place among the bytes of all.
    empty = [source for source, (_, size) in zip(sources, identity, strict=True) if size == 0]
    ends = itertools.accumulate(size for _, size in identity)
    check(
        [
            source
            for source, (_, size), end in zip(sources, identity, ends, strict=True)
            if size == 0 or end > metadata.n_source_bytes_read
        ]
    )
    if empty:
        raise UsageError(f"{empty[0]}: empty, as are {len(empty)} of {len(sources)} files: fetch or remove them")
    if known != identity:
        # Files not yet read may have been replaced, as one that was found damaged has to be.
        _commit(environment, database, metadata, metadata, [], identity)
    done = metadata
    n_bytes = sum(size for _, size in identity)
    pending: list[bytes] = []
    reported = time.monotonic()
    with tqdm(
        total=n_bytes,
        initial=done.n_source_bytes_read,
        unit="B",
        unit_scale=True,
        desc=database.name,
        disable=None,
    ) as bar:
        for image, place, after in _remaining_images(sources, identity, done.n_source_bytes_read, read_images):
            if done.shape is not None and image.shape != done.shape:
                raise UsageError(
                    f"{place}: an image of shape {image.shape}"
                    f" among images of shape {done.shape}: all of a database must have one shape"
                )
            pending.append(pack_image(image))
            bar.update(after - done.n_source_bytes_read)
            height, width, n_channels = image.shape
            done = replace(done, shape=(height, width, n_channels), length=done.length + 1, n_source_bytes_read=after)
            if len(pending) * len(pending[0]) >= _BYTES_PER_TRANSACTION:
                _commit(environment, database, metadata, done, pending)
                metadata, pending = done, []
                if bar.disable and time.monotonic() - reported >= _SECONDS_PER_LINE:
                    print(f"{database.name}: {done.length} images, {100 * after // n_bytes}%", flush=True)
                    reported = time.monotonic()
    if done.length == 0:
        raise UsageError(f"{database}: no image in the {len(sources)} source files: check where they come from")
    done = replace(done, complete=True)
    _commit(environment, database, metadata, done, pending)
    return done


def _in_words(shape: tuple[int, int, int]) -> str:
    height, width, n_channels = shape
    return f"{height} x {width} with {n_channels} channels"


def _made_from(metadata: Metadata, known: list[tuple[str, int]], identity: list[tuple[str, int]]) -> bool:
    """Whether the same files were given in the same order, those already read with the same sizes."""
    if [name for name, _ in known] != [name for name, _ in identity]:
        return False
    ends = itertools.accumulate(size for _, size in known)
    return all(
        before == now or (end > metadata.n_source_bytes_read and not metadata.complete)
        for before, now, end in zip(known, identity, ends, strict=True)
    )


def _remaining_images(
    sources: list[Path], identity: list[tuple[str, int]], n_bytes_read: int, read_images: ImageReader
) -> Iterator[tuple[np.ndarray, str, int]]:
    """Images after the first ``n_bytes_read`` of the sources laid end to end.

    Yields:
        the image, the place it stands at, and the bytes of all sources read with it.
    """
    start = 0
    for source, (_, size) in zip(sources, identity, strict=True):
        if n_bytes_read < start + size:
            offset = max(n_bytes_read - start, 0)
            try:
                for image, after in read_images(source, offset):
                    yield image, f"{source}, record at byte {offset}", start + after
                    offset = after
            except OSError as error:
                raise UsageError(f"{source}: cannot be read ({error.strerror}): check the file") from None
        start += size


def _commit(
    environment: lmdb.Environment,
    database: Path,
    before: Metadata,
    after: Metadata,
    images: list[bytes],
    sources: list[tuple[str, int]] | None = None,
) -> None:
    """Add images, move the metadata from ``before`` to ``after`` and record ``sources``, at once or not at all."""
    while True:
        try:
            with environment.begin(write=True) as transaction:
                stored = read_metadata(database, transaction)
                if (stored.length if stored is not None else 0) != before.length:
                    raise UsageError(f"{database}: another conversion is writing to it: let that one finish")
                for index, image in enumerate(images, start=before.length):
                    transaction.put(image_key(index), image)
                if sources is not None:
                    transaction.put(SOURCES_KEY, json.dumps(sources).encode())
                transaction.put(METADATA_KEY, after.to_bytes())
            return
        except lmdb.MapFullError:
            environment.set_mapsize(2 * environment.info()["map_size"])


def run_conversion(convert: Callable[[], Metadata]) -> int:
    """Run a converter's command: one line on the error stream where it fails, and the exit code."""
    try:
        metadata = convert()
    except (UsageError, RunFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED
    except KeyboardInterrupt:
        print("interrupted: give the same command again to go on where this one stopped", file=sys.stderr)
        return EXIT_FAILED
    assert metadata.shape is not None
    print(f"complete: {metadata.length} images of {_in_words(metadata.shape)}")
    return EXIT_FINISHED
