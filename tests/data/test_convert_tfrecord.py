"""Conversion to LMDB: whole, resumable, and never taken for whole when it is not."""

import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.data.tfrecord_files import make_images, write_tfrecords
from tests.system.command import wait_until
from util.convert_to_lmdb import convert, main, parse, read_tfrecord_images
from util.data import image_conversion
from util.data.dataset import open_dataset
from util.data.image_conversion import convert_images
from util.errors import RunFailed, UsageError

ROOT = Path(__file__).parents[2]


def arguments(folder, split="train"):
    return ["celeba_256", str(folder / "tfr"), str(folder / "lmdb"), f"--split={split}"]


def open_database(folder, split="train", image_size=4, image_channels=3):
    return open_dataset("celeba_256", split, folder / "lmdb", image_size, image_channels, seed=0)


def assert_holds(folder, images, split="train"):
    dataset = open_database(folder, split, images.shape[1])
    assert dataset.length == len(images)
    read = dataset.read(np.arange(len(images)))
    np.testing.assert_array_equal(read.numpy(), images.transpose(0, 3, 1, 2))


def records_per_transaction(monkeypatch, n):
    """Commits after every n images of 4 x 4 x 3."""
    monkeypatch.setattr(image_conversion, "_BYTES_PER_TRANSACTION", n * (4 * 4 * 3 + 4))


def test_the_command(tmp_path):
    images, others = make_images(10, 4), make_images(3, 4, seed=1)
    write_tfrecords(tmp_path / "tfr" / "train", images, n_files=3)
    write_tfrecords(tmp_path / "tfr" / "validation", others, n_files=1)
    published = [
        "util/convert_tfrecord_to_lmdb.py", "--dataset=celeba", f"--tfr_path={tmp_path / 'tfr'}",
        f"--lmdb_path={tmp_path / 'lmdb'}", "--split=validation",
    ]  # fmt: skip
    for words in (["-m", "util.convert_to_lmdb", *arguments(tmp_path, "train")], published):
        command = [sys.executable, *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert "complete" in done.stdout
    assert_holds(tmp_path, images)
    assert_holds(tmp_path, others, "test")


def test_a_complete_database_is_left_as_it_is(tmp_path, capsys):
    write_tfrecords(tmp_path / "tfr" / "train", make_images(4, 4), n_files=1)
    assert main(arguments(tmp_path)) == 0
    before = (tmp_path / "lmdb" / "train.lmdb" / "data.mdb").read_bytes()
    assert main(arguments(tmp_path)) == 0
    assert (tmp_path / "lmdb" / "train.lmdb" / "data.mdb").read_bytes() == before
    assert capsys.readouterr().out.count("complete: 4 images") == 2


@pytest.mark.parametrize("kind", ["truncated", "flipped", "length"])
def test_a_damaged_record_is_named_and_the_conversion_goes_on_once_it_is_replaced(tmp_path, capsys, monkeypatch, kind):
    records_per_transaction(monkeypatch, 2)
    images = make_images(12, 4)
    offsets = write_tfrecords(tmp_path / "tfr" / "train", images, n_files=2)
    path = sorted((tmp_path / "tfr" / "train").iterdir())[1]
    good, at = path.read_bytes(), offsets[1][3]
    damaged = bytearray(good)
    if kind == "truncated":
        damaged = damaged[: at + 40]
    else:
        damaged[at + (40 if kind == "flipped" else 2)] ^= 8
    path.write_bytes(damaged)
    assert main(arguments(tmp_path)) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {path}, record at byte {at}: ")
    assert message.count("\n") == 1
    with pytest.raises(UsageError, match="not complete"):
        open_database(tmp_path)
    path.write_bytes(good)
    assert main(arguments(tmp_path)) == 0
    assert_holds(tmp_path, images)


def test_an_interrupted_conversion_goes_on_where_it_stopped(tmp_path, monkeypatch):
    records_per_transaction(monkeypatch, 3)
    images = make_images(20, 4)
    write_tfrecords(tmp_path / "tfr" / "train", images, n_files=4)
    folder = tmp_path / "tfr" / "train"
    sources = sorted(folder.iterdir())
    read, rows = [], iter(images)

    def interrupted(path, offset):
        for _ in range(5):
            if len(read) == 13:
                raise KeyboardInterrupt
            read.append(offset)
            offset += path.stat().st_size // 5
            yield next(rows), offset

    database = tmp_path / "lmdb" / "train.lmdb"
    with pytest.raises(KeyboardInterrupt):
        convert_images(database, folder, sources, interrupted)
    with pytest.raises(UsageError, match=r"not complete \(12 images so far\)") as error:
        open_database(tmp_path)
    assert "\n" not in str(error.value)
    resumed = []

    def counted(path, offset):
        for image, after in read_tfrecord_images(path, offset):
            resumed.append((path.name, offset))
            yield image, after

    convert_images(database, folder, sources, counted)
    assert len(resumed) == 20 - 12
    assert resumed[0][1] > 0
    assert_holds(tmp_path, images)


def test_a_killed_conversion_is_refused_and_then_finished(tmp_path):
    images = make_images(40, 64)
    write_tfrecords(tmp_path / "tfr" / "train", images, n_files=2)
    # Commits every image, and stops in the middle until it is killed.
    script = (
        "import sys, time\n"
        "from util import convert_to_lmdb as conversion\n"
        "from util.data import image_conversion\n"
        "image_conversion._BYTES_PER_TRANSACTION = 1\n"
        "read = conversion.read_tfrecord_images\n"
        "def half(path, offset):\n"
        "    for number, item in enumerate(read(path, offset)):\n"
        "        if number == 12:\n"
        "            time.sleep(3600)\n"
        "        yield item\n"
        "conversion.read_tfrecord_images = half\n"
        "sys.exit(conversion.main(sys.argv[1:]))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, *arguments(tmp_path)], cwd=ROOT)
    data = tmp_path / "lmdb" / "train.lmdb" / "data.mdb"
    wait_until(lambda: data.exists() and data.stat().st_size >= 5 * images[0].size, process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with pytest.raises(UsageError, match="not complete"):
        open_database(tmp_path, image_size=64)
    assert main(arguments(tmp_path)) == 0
    assert_holds(tmp_path, images)


def test_a_database_of_other_files_is_not_written_to(tmp_path, capsys):
    write_tfrecords(tmp_path / "tfr" / "train", make_images(8, 4), n_files=2)
    assert main(arguments(tmp_path)) == 0
    write_tfrecords(tmp_path / "tfr" / "train", make_images(8, 4), n_files=3)
    assert main(arguments(tmp_path)) == 2
    message = capsys.readouterr().err
    assert "other files" in message
    assert str(tmp_path / "lmdb" / "train.lmdb") in message


def test_images_of_two_shapes_are_refused(tmp_path):
    folder = tmp_path / "tfr" / "train"
    write_tfrecords(folder, make_images(2, 4), n_files=1)
    write_tfrecords(tmp_path / "other", make_images(2, 8), n_files=1)
    (tmp_path / "other" / "part-0000-of-0001.tfrecords").rename(folder / "z.tfrecords")
    with pytest.raises(UsageError, match=r"z\.tfrecords, record at byte 0: an image of shape \(8, 8, 3\)"):
        convert(parse(arguments(tmp_path)))


def test_missing_files_are_named(tmp_path, capsys):
    assert main(arguments(tmp_path)) == 2
    assert str(tmp_path / "tfr" / "train") in capsys.readouterr().err


def test_the_map_grows_as_needed(tmp_path):
    images = make_images(30, 64)
    folder = tmp_path / "images"
    folder.mkdir()
    for row in range(len(images)):
        (folder / f"{row:03d}").write_bytes(b"x")

    def read_images(path, _):
        yield images[int(path.name)], 1

    database = tmp_path / "lmdb" / "train.lmdb"
    convert_images(database, folder, sorted(folder.iterdir()), read_images, map_size=1 << 16)
    assert_holds(tmp_path, images)


def test_a_full_disk_is_one_line_and_the_conversion_can_go_on(tmp_path, monkeypatch):
    images = make_images(30, 64)
    write_tfrecords(tmp_path / "tfr" / "train", images, n_files=2)
    monkeypatch.setattr(image_conversion, "_BYTES_PER_TRANSACTION", 1)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
        with pytest.raises(RunFailed, match="cannot be written") as error:
            convert(parse(arguments(tmp_path)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert "\n" not in str(error.value)
    assert "MiB are free" in str(error.value)
    with pytest.raises(UsageError, match="not complete"):
        open_database(tmp_path, image_size=64)
    convert(parse(arguments(tmp_path)))
    assert_holds(tmp_path, images)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, capsys):
    write_tfrecords(tmp_path / "tfr" / "train", make_images(2, 4), n_files=1)
    (tmp_path / "lmdb").write_text("a file where a folder should be")
    assert main(arguments(tmp_path)) == 1
    assert capsys.readouterr().err.count("\n") == 1
