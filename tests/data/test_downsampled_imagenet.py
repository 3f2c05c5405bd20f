import pickle

import numpy as np
import pytest
from PIL import Image

from util.convert_to_lmdb import main
from util.data import image_conversion
from util.data.dataset import open_dataset
from util.errors import UsageError

SIZES = {"imagenet32": 32, "imagenet_64": 64}
TRAIN = [f"train_data_batch_{number}" for number in range(1, 11)]
ROWS = 3


def entries(images):
    """A batch as published: rows of all red, then all green, then all blue, with labels from 1."""
    rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return {"data": rows, "labels": [1 + row for row in range(len(images))], "mean": rows.mean(axis=0)}


def write_batches(folder, form, size=32, seed=0):
    """All batches of both splits; the training images in order, (N, H, W, 3), and the validation images."""
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(seed)
    parts = []
    for name in [*TRAIN, "val_data"]:
        images = generator.integers(256, size=(ROWS, size, size, 3), dtype=np.uint8)
        write_batch(folder, name, entries(images), form)
        parts.append(images)
    return np.concatenate(parts[:-1]), parts[-1]


def write_batch(folder, name, content, form):
    if form == "npz":
        np.savez(folder / f"{name}.npz", **content)
    elif form == "compressed npz":
        np.savez_compressed(folder / f"{name}.npz", **content)
    else:
        (folder / name).write_bytes(pickle.dumps(content, int(form[-1])))


def write_folders(folder, size=32):
    generator = np.random.default_rng(1)
    parts = {}
    for name in (f"train_{size}x{size}", f"valid_{size}x{size}"):
        (folder / name).mkdir(parents=True)
        parts[name] = generator.integers(256, size=(4, size, size, 3), dtype=np.uint8)
        for row, image in enumerate(parts[name]):
            Image.fromarray(image).save(folder / name / f"{row}.png")
    return list(parts.values())


def open_split(folder, split="train", name="imagenet32", image_size=None, image_channels=3):
    return open_dataset(name, split, folder, image_size or SIZES[name], image_channels, seed=0)


def assert_holds(dataset, images):
    assert dataset.length == len(images)
    assert dataset.shape == images.transpose(0, 3, 1, 2).shape[1:]
    np.testing.assert_array_equal(dataset.read(np.arange(len(images))).numpy(), images.transpose(0, 3, 1, 2))


def read_all(folder, *arguments, **options):
    dataset = open_split(folder, *arguments, **options)
    return dataset.read(np.arange(dataset.length)).numpy()


def refused(folder, *arguments, **options):
    with pytest.raises(UsageError) as error:
        read_all(folder, *arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("form", ["pickle 2", "pickle 3", "pickle 4", "npz", "compressed npz"])
def test_batches_are_read_in_their_order(tmp_path, form):
    train, validation = write_batches(tmp_path, form)
    assert_holds(open_split(tmp_path), train)
    assert_holds(open_split(tmp_path, "test"), validation)


def test_batches_may_lie_in_the_folders_they_were_packed_in(tmp_path):
    train, validation = write_batches(tmp_path / "all", "npz")
    for number, name in enumerate([*TRAIN, "val_data"]):
        folder = tmp_path / "data" / f"part{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        (tmp_path / "all" / f"{name}.npz").rename(folder / f"{name}.npz")
    assert_holds(open_split(tmp_path / "data"), train)
    assert_holds(open_split(tmp_path / "data", "test"), validation)


@pytest.mark.parametrize("name", SIZES)
def test_the_old_release_is_read(tmp_path, name):
    train, validation = write_folders(tmp_path, SIZES[name])
    assert_holds(open_split(tmp_path, "train", name), train)
    assert_holds(open_split(tmp_path, "test", name), validation)


def test_what_runs_code_is_refused(tmp_path):
    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "attacked"), "w"))

    write_batches(tmp_path, "pickle 3")
    content = entries(np.zeros((1, 32, 32, 3), dtype=np.uint8))
    write_batch(tmp_path, TRAIN[4], {**content, "mean": Attack()}, "pickle 3")
    message = refused(tmp_path)
    assert TRAIN[4] in message
    assert "open" in message
    (tmp_path / TRAIN[4]).unlink()
    write_batch(tmp_path, TRAIN[4], {**content, "data": np.array([Attack()])}, "npz")
    assert f"{TRAIN[4]}.npz" in refused(tmp_path)
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("form", ["pickle 3", "npz", "compressed npz"])
def test_damaged_and_truncated_batches_are_named(tmp_path, form):
    write_batches(tmp_path, form)
    path = tmp_path / (TRAIN[2] if form.startswith("pickle") else f"{TRAIN[2]}.npz")
    good = path.read_bytes()
    for content in (good[:-40], good[: len(good) // 2], good[:20], b"", b"text"):
        path.write_bytes(content)
        assert str(path) in refused(tmp_path)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # in the description of a damaged array
@pytest.mark.parametrize("form", ["npz", "compressed npz"])
def test_every_damaged_byte_is_a_usage_error_or_changes_no_pixel(tmp_path, form):
    _, validation = write_batches(tmp_path, form)
    path = tmp_path / "val_data.npz"
    good = path.read_bytes()
    n_refused = 0
    for at in [*range(200), *range(200, len(good) - 400, 397), *range(len(good) - 400, len(good))]:
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x55]) + good[at + 1 :])
        try:
            images = read_all(tmp_path, "test")
        except UsageError as error:
            message = str(error)
            n_refused += 1
        else:
            message = str(path)
            np.testing.assert_array_equal(images, validation.transpose(0, 3, 1, 2))
        assert str(path) in message
        assert "\n" not in message
    assert n_refused > 200


def test_arrays_of_another_shape_are_named(tmp_path):
    write_batches(tmp_path, "npz")
    rows = entries(np.zeros((4, 32, 32, 3), dtype=np.uint8))
    for wrong, expected in (
        ({**rows, "labels": [1, 2, 3]}, r"(3, 3072)"),
        ({**rows, "data": rows["data"].astype(np.float32)}, "float32"),
        ({**rows, "data": rows["data"][:, :-1]}, "(4, 3071)"),
        ({"labels": [1]}, "data.npy"),
    ):
        np.savez(tmp_path / f"{TRAIN[0]}.npz", **wrong)
        message = refused(tmp_path)
        assert f"{TRAIN[0]}.npz" in message
        assert expected in message
    write_batches(tmp_path / "pickled", "pickle 3")
    write_batch(tmp_path / "pickled", TRAIN[9], {**rows, "labels": [1, 2, 3, 1001]}, "pickle 3")
    assert f"{TRAIN[9]}: row 3 has a label that is not 1 to 1000" in refused(tmp_path / "pickled")


def test_missing_files_and_wrong_shapes_are_named(tmp_path):
    message = refused(tmp_path)
    assert "train_data_batch_1" in message
    assert "train_32x32" in message
    assert "set image_size 32" in refused(tmp_path, image_size=64)
    assert "image_channels 3" in refused(tmp_path, image_channels=1)
    write_batches(tmp_path, "npz")
    (tmp_path / f"{TRAIN[6]}.npz").unlink()
    assert f"{TRAIN[6]} (or {TRAIN[6]}.npz) is missing" in refused(tmp_path)
    write_batches(tmp_path, "npz")
    write_batches(tmp_path / "again", "pickle 3")
    assert "the same batch" in refused(tmp_path)


def test_the_two_releases_are_not_mixed(tmp_path):
    write_batches(tmp_path, "npz")
    train, _ = write_folders(tmp_path)
    assert "both releases" in refused(tmp_path)
    for name in [*TRAIN, "val_data"]:
        (tmp_path / f"{name}.npz").unlink()
    assert_holds(open_split(tmp_path), train)
    assert main(["imagenet32", str(tmp_path), str(tmp_path)]) == 0
    assert_holds(open_split(tmp_path), train)
    # From now on the databases are the set, and there is none of the other split.
    assert "validation.lmdb" in refused(tmp_path, "test")


def test_an_image_of_another_size_is_named(tmp_path):
    write_folders(tmp_path)
    Image.new("RGB", (64, 64)).save(tmp_path / "train_32x32" / "2.png")
    assert "2.png: an image of 64 x 64 in a set of 32 x 32" in refused(tmp_path)


@pytest.mark.parametrize("name", SIZES)
def test_conversion_of_batches(tmp_path, name):
    train, validation = write_batches(tmp_path / "source", "compressed npz", SIZES[name])
    for split in ("train", "validation"):
        assert main([name, str(tmp_path / "source"), str(tmp_path / "lmdb"), f"--split={split}"]) == 0
    assert_holds(open_split(tmp_path / "lmdb", "train", name), train)
    assert_holds(open_split(tmp_path / "lmdb", "test", name), validation)
    if name == "imagenet_64":
        assert "util.convert_to_lmdb imagenet_64" in refused(tmp_path / "source", "train", name)


@pytest.mark.parametrize("at", range(1, 10 * ROWS, 4))
def test_a_conversion_that_met_a_damaged_batch_or_an_end_goes_on(tmp_path, monkeypatch, capsys, at):
    """Stopped after ``at`` images, in the middle of a batch or between two, with a batch missing from then on."""
    train, _ = write_batches(tmp_path / "source", "compressed npz")
    command = ["imagenet32", str(tmp_path / "source"), str(tmp_path / "lmdb")]
    monkeypatch.setattr(image_conversion, "_BYTES_PER_TRANSACTION", 1)
    packed, n_packed = image_conversion.pack_image, []

    def stopped(image):
        if len(n_packed) == at:
            raise KeyboardInterrupt
        n_packed.append(image)
        return packed(image)

    monkeypatch.setattr(image_conversion, "pack_image", stopped)
    assert main(command) == 1
    assert "interrupted" in capsys.readouterr().err
    assert f"{at} images so far" in refused(tmp_path / "lmdb")
    last = tmp_path / "source" / f"{TRAIN[9]}.npz"
    good = last.read_bytes()
    last.write_bytes(good[:-30])
    monkeypatch.setattr(image_conversion, "pack_image", packed)
    assert main(command) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {last}: damaged")
    assert message.count("\n") == 1
    last.write_bytes(good)
    assert main(command) == 0
    assert_holds(open_split(tmp_path / "lmdb"), train)
