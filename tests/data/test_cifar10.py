import hashlib
import http.server
import pickle
import threading

import numpy as np
import pytest
import torch

from tests.data.cifar10_files import TRAIN_NAMES, batch, integer, write_archive, write_folder
from util.data.cifar10 import ARCHIVE, FOLDER, download_cifar10
from util.data.dataset import open_dataset, prepare_dataset
from util.errors import UsageError

ROWS = 4
LABELS_OF_3, LABELS_OF_4 = (b"".join(map(integer, labels)) for labels in ([0, 1, 2], [0, 1, 2, 3]))


@pytest.fixture
def batches():
    """The content of each batch file, and all training and test images."""
    generator = np.random.default_rng(0)
    images = {
        name: generator.integers(256, size=(ROWS, 3, 32, 32), dtype=np.uint8) for name in [*TRAIN_NAMES, "test_batch"]
    }
    contents = {name: batch(values, [1, 9, 0, 5]) for name, values in images.items()}
    return contents, np.concatenate([images[name] for name in TRAIN_NAMES]), images["test_batch"]


def open_split(folder, split="train", image_size=32, image_channels=3):
    return open_dataset("cifar10", split, folder, image_size, image_channels, seed=0)


def refused(folder, split="train", **shape):
    with pytest.raises(UsageError) as error:
        open_split(folder, split, **shape)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_writer_writes_what_numpy_reads(batches):
    loaded = pickle.loads(batches[0]["test_batch"], encoding="bytes")
    np.testing.assert_array_equal(loaded[b"data"], batches[2].reshape(ROWS, -1))


@pytest.mark.parametrize("write", ["archive", "folder"])
def test_images_and_their_order(tmp_path, batches, write):
    contents, train, test = batches
    if write == "archive":
        write_archive(tmp_path / ARCHIVE, contents)
    else:
        write_folder(tmp_path, contents)
    dataset = open_split(tmp_path)
    assert dataset.shape == (3, 32, 32)
    assert dataset.length == 5 * ROWS
    assert dataset.read(np.arange(5 * ROWS)).dtype == torch.uint8
    np.testing.assert_array_equal(dataset.read(np.arange(5 * ROWS)).numpy(), train)
    np.testing.assert_array_equal(open_split(tmp_path, "test").read(np.array([2, 0])).numpy(), test[[2, 0]])


@pytest.mark.parametrize("protocol", [3, 4])
def test_pickles_of_python_3_are_read(tmp_path, batches, protocol):
    contents, train, _ = batches
    for name, images in zip(TRAIN_NAMES, train.reshape(5, ROWS, -1), strict=True):
        contents[name] = pickle.dumps({b"data": images, b"labels": [0] * ROWS}, protocol)
    write_folder(tmp_path, contents)
    np.testing.assert_array_equal(open_split(tmp_path).read(np.arange(5 * ROWS)).numpy(), train)


def test_a_pickle_that_runs_code_is_refused(tmp_path, batches):
    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "attacked"), "w"))

    contents, _, _ = batches
    contents["data_batch_3"] = pickle.dumps({"data": Attack(), "labels": [0]}, 2)
    write_folder(tmp_path, contents)
    message = refused(tmp_path)
    assert "data_batch_3" in message
    assert "open" in message
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("cut", [1, 100, 3000, 9000])
def test_a_truncated_batch_is_named(tmp_path, batches, cut):
    contents, _, _ = batches
    contents["data_batch_2"] = contents["data_batch_2"][:-cut]
    write_folder(tmp_path, contents)
    message = refused(tmp_path)
    assert "data_batch_2" in message
    assert "byte" in message


def opened_or_refused(folder):
    try:
        open_split(folder, "test")
    except UsageError as error:
        return str(error)
    return "opened"


def test_every_damaged_byte_of_the_structure_is_a_usage_error_or_harmless(tmp_path, batches):
    contents, _, _ = batches
    good = contents["test_batch"]
    write_folder(tmp_path, contents)
    for at in [*range(160), *range(len(good) - 60, len(good))]:
        damaged = bytearray(good)
        damaged[at] ^= 0x55
        (tmp_path / FOLDER / "test_batch").write_bytes(damaged)
        message = opened_or_refused(tmp_path)
        assert message == "opened" or "test_batch" in message
        assert "\n" not in message


def test_a_short_array_and_a_wrong_label_are_named_by_row(tmp_path, batches):
    contents, train, _ = batches
    write_folder(tmp_path, contents)
    (tmp_path / FOLDER / "data_batch_1").write_bytes(batch(train[:ROWS], [0, 1, 10, 2]))
    assert "data_batch_1: row 2" in refused(tmp_path)
    short = batch(train[: ROWS - 1], [0, 1, 2]).replace(LABELS_OF_3, LABELS_OF_4)
    short = short.replace(integer(ROWS - 1) + integer(3072), integer(ROWS) + integer(3072))
    (tmp_path / FOLDER / "data_batch_1").write_bytes(short)
    assert f"data_batch_1: 'data' ends in row {ROWS - 1}" in refused(tmp_path)


def test_a_damaged_or_incomplete_archive_is_named(tmp_path, batches):
    contents, _, _ = batches
    path = tmp_path / ARCHIVE
    write_archive(path, contents)
    good = path.read_bytes()
    for damaged in (good[: len(good) // 2], b"not an archive", good[:-8] + b"\0" * 8, good[:5000] + b"x" + good[5001:]):
        path.write_bytes(damaged)
        assert str(path) in refused(tmp_path)
    write_archive(path, {name: contents[name] for name in TRAIN_NAMES[:-1]})
    assert "data_batch_5" in refused(tmp_path)


def test_missing_files_and_wrong_shapes_are_named(tmp_path, batches):
    assert str(tmp_path) in refused(tmp_path)
    contents, _, _ = batches
    del contents["data_batch_4"]
    write_folder(tmp_path, contents)
    assert "data_batch_4" in refused(tmp_path)
    assert "image_size 64" in refused(tmp_path, image_size=64)
    assert "image_channels 1" in refused(tmp_path, image_channels=1)


@pytest.fixture
def server(tmp_path):
    """Serves a folder over HTTP on this machine."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def test_download(tmp_path, server, batches):
    contents, train, _ = batches
    folder, address = server
    write_archive(folder / ARCHIVE, contents)
    md5 = hashlib.md5((folder / ARCHIVE).read_bytes()).hexdigest()
    place = tmp_path / "data"
    with pytest.raises(UsageError, match="MD5"):
        download_cifar10(place, url=f"{address}/{ARCHIVE}", md5="0" * 32)
    with pytest.raises(UsageError, match="404"):
        download_cifar10(place, url=f"{address}/elsewhere", md5=md5)
    assert list(place.iterdir()) == []
    download_cifar10(place, url=f"{address}/{ARCHIVE}", md5=md5)
    assert [path.name for path in place.iterdir()] == [ARCHIVE]
    np.testing.assert_array_equal(open_split(place).read(np.arange(5 * ROWS)).numpy(), train)
    # Nothing is fetched for what is there already.
    prepare_dataset("cifar10", place)


def test_download_without_a_connection_says_what_to_do(tmp_path):
    with pytest.raises(UsageError, match=f"put {ARCHIVE}") as error:
        download_cifar10(tmp_path, url=f"http://127.0.0.1:9/{ARCHIVE}")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []
