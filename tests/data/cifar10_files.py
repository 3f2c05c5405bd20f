"""Writes files of the format of the CIFAR-10 Python archive, with the opcodes that Python 2 used."""

import io
import struct
import tarfile

import numpy as np

from util.data.cifar10 import FOLDER

TRAIN_NAMES = [f"data_batch_{i}" for i in range(1, 6)]


def string(content: bytes) -> bytes:
    if len(content) < 256:
        return b"U" + bytes([len(content)]) + content
    return b"T" + struct.pack("<i", len(content)) + content


def integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def array(content: bytes, shape: tuple[int, int]) -> bytes:
    """A uint8 array as NumPy reduces it: _reconstruct(ndarray, (0,), 'b'), then its state."""
    shape_of_nothing = b"(" + integer(0) + b"t"
    dtype = b"cnumpy\ndtype\n(" + string(b"u1") + integer(0) + integer(1) + b"tR("
    dtype += integer(3) + string(b"|") + b"NNN" + integer(-1) + integer(-1) + integer(0) + b"tb"
    head = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + shape_of_nothing + string(b"b") + b"tR"
    state = b"(" + integer(1) + b"(" + b"".join(map(integer, shape)) + b"t" + dtype + b"I00\n" + string(content) + b"t"
    return head + state + b"b"


def batch(images: np.ndarray, labels: list[int]) -> bytes:
    """A pickle of protocol 2 with the entries of a batch file."""
    rows = len(images)
    entries = string(b"batch_label") + string(b"a batch") + b"s"
    entries += string(b"labels") + b"](" + b"".join(map(integer, labels)) + b"es"
    entries += string(b"data") + array(images.tobytes(), (rows, images[0].size)) + b"s"
    entries += string(b"filenames") + b"](" + b"".join(string(b"%d.png" % row) for row in range(rows)) + b"es"
    return b"\x80\x02}" + entries + b"."


def write_archive(path, batches: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in batches.items():
            member = tarfile.TarInfo(f"{FOLDER}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_folder(path, batches: dict[str, bytes]) -> None:
    (path / FOLDER).mkdir()
    for name, content in batches.items():
        (path / FOLDER / name).write_bytes(content)
