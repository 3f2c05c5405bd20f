import gzip
import struct

import numpy as np
import pytest

from util.convert_to_lmdb import main
from util.data.dataset import open_dataset
from util.errors import UsageError

NAMES = {"train": "train-images-idx3-ubyte", "test": "t10k-images-idx3-ubyte"}


def idx(images):
    return struct.pack(">BBBBIII", 0, 0, 8, 3, *images.shape) + images.tobytes()


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(256, size=(5, 28, 28), dtype=np.uint8)


def open_split(folder, split="train", image_size=28, image_channels=1):
    return open_dataset("mnist", split, folder, image_size, image_channels, seed=0)


def refused(folder, **options):
    with pytest.raises(UsageError) as error:
        open_split(folder, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("place", [".", "MNIST/raw"])
@pytest.mark.parametrize("packed", [False, True])
def test_images_are_read_and_padded(tmp_path, images, place, packed):
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    for split, part in (("train", images), ("test", images[:2])):
        content = idx(part)
        path = tmp_path / place / (NAMES[split] + (".gz" if packed else ""))
        path.write_bytes(gzip.compress(content) if packed else content)
    train, test = open_split(tmp_path), open_split(tmp_path, "test", image_size=32)
    assert (train.length, train.shape) == (5, (1, 28, 28))
    np.testing.assert_array_equal(train.read(np.array([4, 1])).numpy()[:, 0], images[[4, 1]])
    assert (test.length, test.shape) == (2, (1, 32, 32))
    padded = test.read(np.arange(2)).numpy()[:, 0]
    np.testing.assert_array_equal(padded[:, 2:-2, 2:-2], images[:2])
    assert padded.sum() == images[:2].sum(dtype=np.int64)


def test_damaged_files_are_named_with_the_place(tmp_path, images):
    path = tmp_path / NAMES["train"]
    good = idx(images)
    for content, expected in (
        (good[:-1], "ends at byte 3935, in image 4 of 5"),
        (good + b"x", "ends at byte 3937, after its 5 images"),
        (good[:9], "ends at byte 9, within its header"),
        (b"", "ends at byte 0"),
        (b"\0\0\x08\x01" + good[4:], "byte 0: not an IDX file of images"),
        (idx(images[:, :20]), "byte 8: images of 20 x 28"),
    ):
        path.write_bytes(content)
        message = refused(tmp_path)
        assert message.startswith(f"{path}: {expected}"), message
    path.unlink()
    path = path.with_suffix(".gz")
    packed = gzip.compress(good)
    for content in (packed[:-20], b"not packed", packed[:-8] + b"\0" * 8, b""):
        path.write_bytes(content)
        assert str(path) in refused(tmp_path)


def test_missing_files_and_wrong_shapes_are_named(tmp_path, images):
    message = refused(tmp_path)
    assert NAMES["train"] in message
    assert str(tmp_path) in message
    (tmp_path / NAMES["train"]).write_bytes(idx(images))
    assert "set image_size 28 or 32" in refused(tmp_path, image_size=64)
    assert "image_channels 1" in refused(tmp_path, image_channels=3)


@pytest.mark.parametrize("size", [28, 32])
def test_conversion(tmp_path, images, size, capsys):
    (tmp_path / NAMES["test"]).write_bytes(idx(images))
    database = tmp_path / "lmdb"
    assert main(["mnist", str(tmp_path), str(database), "--split=test", f"--image_size={size}"]) == 0
    assert f"5 images of {size} x {size} with 1 channels" in capsys.readouterr().out
    converted, original = (open_split(place, "test", size).read(np.arange(5)) for place in (database, tmp_path))
    np.testing.assert_array_equal(converted.numpy(), original.numpy())
