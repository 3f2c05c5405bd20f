import json
import multiprocessing
import pickle
import zlib

import lmdb
import numpy as np
import pytest
from PIL import Image

from tests.data.image_files import picture, save
from tests.data.tfrecord_files import make_images
from util.convert_to_lmdb import main
from util.data.dataset import open_dataset
from util.data.image_database import image_key
from util.errors import UsageError


@pytest.fixture
def converted(tmp_path):
    """Six images of 8 x 8 in a database, made from a folder by the command."""
    images = make_images(6, 8)
    (tmp_path / "images" / "train").mkdir(parents=True)
    for row, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "images" / "train" / f"{row}.png")
    options = ["folder", str(tmp_path / "images"), str(tmp_path), "--image_size=8"]
    assert main(options) == 0
    return tmp_path, images.transpose(0, 3, 1, 2)


def open_database(folder, split="train", image_size=8, image_channels=3):
    return open_dataset("lmdb", split, folder, image_size, image_channels, seed=0)


def refused(folder, split="train", **options):
    with pytest.raises(UsageError) as error:
        open_database(folder, split, **options).read(np.arange(6))
    assert "\n" not in str(error.value)
    return str(error.value)


def change(folder, key, value):
    with lmdb.open(str(folder / "train.lmdb")) as environment, environment.begin(write=True) as transaction:
        if value is None:
            transaction.delete(key)
        else:
            transaction.put(key, value)


def read(folder, key):
    with lmdb.open(str(folder / "train.lmdb")) as environment, environment.begin() as transaction:
        return transaction.get(key)


def test_a_folder_is_converted_and_read(converted):
    folder, images = converted
    dataset = open_database(folder)
    assert (dataset.length, dataset.shape) == (6, (3, 8, 8))
    np.testing.assert_array_equal(dataset.read(np.array([5, 0, 0])).numpy(), images[[5, 0, 0]])


def test_two_open_sets_share_a_database(converted):
    folder, images = converted
    first, second = open_database(folder), open_database(folder)
    np.testing.assert_array_equal(first.read(np.array([1])).numpy(), images[[1]])
    np.testing.assert_array_equal(second.read(np.array([2])).numpy(), images[[2]])


def _send(connection, dataset):
    connection.send(dataset.read(np.arange(6)).numpy())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_read_while_this_one_does(converted, method):
    folder, images = converted
    dataset = open_database(folder)
    np.testing.assert_array_equal(dataset.read(np.arange(6)).numpy(), images)
    context = multiprocessing.get_context(method)
    here, there = context.Pipe()
    process = context.Process(target=_send, args=(there, dataset))
    process.start()
    assert here.poll(60)
    np.testing.assert_array_equal(here.recv(), images)
    process.join()
    assert process.exitcode == 0
    np.testing.assert_array_equal(dataset.read(np.arange(6)).numpy(), images)


def test_a_copy_by_pickle_reads_too(converted):
    folder, images = converted
    copy = pickle.loads(pickle.dumps(open_database(folder)))
    np.testing.assert_array_equal(copy.read(np.array([3])).numpy(), images[[3]])


def test_missing_databases_and_splits_are_named(tmp_path, converted):
    folder, _ = converted
    assert "validation.lmdb" in refused(folder, "test")
    assert "nowhere" in refused(tmp_path / "nowhere")


def test_another_shape_is_named(converted):
    folder, _ = converted
    assert "8 x 8 with 3 channels" in refused(folder, image_size=16)
    assert "image_channels 1" in refused(folder, image_channels=1)


def test_a_changed_image_is_named(converted):
    folder, images = converted
    pixels = bytearray(images[4].transpose(1, 2, 0).tobytes())
    checksum = zlib.crc32(pixels).to_bytes(4, "little")
    pixels[17] ^= 1
    change(folder, image_key(4), checksum + bytes(pixels))
    assert "image 4 fails its checksum" in refused(folder)


@pytest.mark.parametrize("value", [None, b"", b"12345"])
def test_a_lost_image_is_named(converted, value):
    folder, _ = converted
    change(folder, image_key(2), value)
    assert "image 2 is missing" in refused(folder)


@pytest.mark.parametrize("value", [b"{}", b"\xff", b'{"version": 99}', b"[]", b'{"version": 1, "shape": [1]}'])
def test_metadata_that_cannot_be_read_are_named(converted, value):
    folder, _ = converted
    change(folder, b"metadata", value)
    message = refused(folder)
    assert "train.lmdb" in message
    assert "metadata" in message


def test_a_database_without_a_completion_record_is_refused(converted):
    folder, _ = converted
    change(folder, b"metadata", None)
    assert "not complete" in refused(folder)


def test_a_file_that_is_no_database_is_named(tmp_path):
    (tmp_path / "train.lmdb").mkdir()
    (tmp_path / "train.lmdb" / "data.mdb").write_bytes(b"x" * 10_000)
    assert "train.lmdb" in refused(tmp_path)
    (tmp_path / "empty" / "train.lmdb").mkdir(parents=True)
    assert "train.lmdb" in refused(tmp_path / "empty")


def test_a_damaged_image_stops_the_conversion_and_is_named(tmp_path, capsys):
    (tmp_path / "images" / "train").mkdir(parents=True)
    (tmp_path / "images" / "train" / "bad.png").write_bytes(b"nothing")
    options = ["folder", str(tmp_path / "images"), str(tmp_path), "--image_size=8"]
    assert main(options) == 2
    assert "bad.png" in capsys.readouterr().err


@pytest.mark.parametrize("changes", [["--image_size=4"], ["--image_size=8", "--image_channels=1"]])
def test_a_finished_database_is_not_taken_for_one_of_another_shape(converted, capsys, changes):
    folder, images = converted
    assert main(["folder", str(folder / "images"), str(folder), *changes]) == 2
    message = capsys.readouterr().err
    assert "train.lmdb: its images are 8 x 8 with 3 channels, and " in message
    assert message.count("\n") == 1
    np.testing.assert_array_equal(open_database(folder).read(np.arange(6)).numpy(), images)


def test_nor_is_one_that_is_not_finished(converted, capsys):
    folder, _ = converted
    stored = json.loads(read(folder, b"metadata"))
    change(folder, b"metadata", json.dumps({**stored, "length": 3, "complete": False}).encode())
    assert main(["folder", str(folder / "images"), str(folder), "--image_size=4"]) == 2
    assert "4 x 4 with 3 channels was asked for" in capsys.readouterr().err


def test_nor_one_that_was_read_as_another_set(tmp_path, capsys):
    """Images that CelebA-64 is cut from, and that a folder of images only makes smaller."""
    for number in range(2):
        save(tmp_path / "source" / "train" / f"{number}.png", picture(218, 178, seed=number))
    assert main(["celeba_64", str(tmp_path / "source"), str(tmp_path)]) == 0
    command = ["folder", str(tmp_path / "source"), str(tmp_path), "--image_size=64"]
    assert main(command) == 2
    assert "train.lmdb: was made as celeba_64, not folder" in capsys.readouterr().err
    # A database from before this was recorded is taken as it is.
    stored = json.loads(read(tmp_path, b"metadata"))
    del stored["form"]
    change(tmp_path, b"metadata", json.dumps(stored).encode())
    assert main(command) == 0


@pytest.mark.parametrize("key", [b"00000000", b"image-000000001", b"__keys__"])
def test_a_database_of_another_tool_is_called_that(tmp_path, capsys, key):
    (tmp_path / "train.lmdb").mkdir()
    change(tmp_path, key, b"\x89PNG...")
    assert "train.lmdb: an LMDB database of another tool" in refused(tmp_path)
    save(tmp_path / "images" / "train" / "a.png")
    assert main(["folder", str(tmp_path / "images"), str(tmp_path), "--image_size=8"]) == 2
    assert "train.lmdb: an LMDB database of another tool" in capsys.readouterr().err
    assert read(tmp_path, key) == b"\x89PNG..."
