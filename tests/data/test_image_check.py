"""All broken files of a folder are named at once, and good ones are looked at once."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.data.image_files import deep_tiff, picture, save, save_many
from tests.data.test_celeba import write_release
from util.convert_to_lmdb import main as convert
from util.data import image_check
from util.data.celeba import open_celeba
from util.data.downsampled_imagenet import open_imagenet
from util.data.image_check import ImageCheck
from util.data.image_folder import open_image_folder
from util.errors import RunFailed, UsageError


@pytest.fixture
def folder(tmp_path):
    save_many(tmp_path / "train", 12)
    return tmp_path


def check(root, memory=None, split="train"):
    """All of a split, in pieces."""
    return check_set(open_image_folder(split, root, 8, 3), memory)


def check_set(*folders_and_memory):
    *folders, memory = folders_and_memory
    work = ImageCheck(folders, memory)
    while work.advance(0.0):
        pass
    work.finish()


def refused(*arguments):
    with pytest.raises(UsageError) as error:
        check_set(*arguments) if not isinstance(arguments[0], os.PathLike) else check(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_good_files_pass(folder):
    check(folder)


def test_one_broken_file_is_named(folder):
    (folder / "train" / "007.png").write_bytes(b"")
    path = folder / "train" / "007.png"
    assert refused(folder) == f"{path}: cannot be read as an image (it is empty): repair or remove it"


def test_all_broken_files_are_named_at_once(folder):
    (folder / "train" / "003.png").write_bytes(b"")
    (folder / "train" / "005.png").write_bytes(b"<html>404</html>")
    deep_tiff(folder / "train" / "deep.tif")
    whole = (folder / "train" / "008.png").read_bytes()
    (folder / "train" / "008.png").write_bytes(whole[: len(whole) // 2])
    message = refused(folder)
    assert message.startswith("4 of 13 images cannot be used: ")
    for name in ("003.png", "005.png", "008.png", "deep.tif"):
        assert str(folder / "train" / name) in message
    assert message.endswith(": repair or remove, or convert (for example with mogrify -depth 8 FILE) or remove them")
    for number in range(12):
        (folder / "train" / f"{number:03}.png").write_bytes(b"")
    message = refused(folder)
    assert message.count(".png") == 5
    assert "13 of 13 images" in message
    assert "and 8 more" in message


def test_both_splits_in_one_message(folder):
    save_many(folder / "test", 2)
    for split in ("train", "test"):
        (folder / split / "000.png").write_bytes(b"")
    message = refused(open_image_folder("train", folder, 8, 3), open_image_folder("test", folder, 8, 3), None)
    assert message.startswith("2 of 14 images")


def test_a_file_that_is_gone_is_named(folder):
    images = open_image_folder("train", folder, 8, 3)
    (folder / "train" / "004.png").unlink()
    assert "004.png: cannot be read (No such file or directory)" in refused(images, None)


def test_images_that_do_not_fit_their_set_are_named(tmp_path):
    for split in ("train_32x32", "valid_32x32"):
        save(tmp_path / split / "1.png", picture(32, 32))
        save(tmp_path / split / "2.png", picture(32, 33))
    message = refused(open_imagenet("imagenet32", "train", tmp_path), None)
    assert "2.png: an image of 32 x 33 in a set of 32 x 32: replace it" in message
    faces = [np.zeros((218, 178, 3), dtype=np.uint8), np.zeros((100, 178, 3), dtype=np.uint8)]
    write_release(tmp_path / "celeba", faces, [0, 0])
    assert "000002.jpg: 100 x 178 is too small to cut" in refused(open_celeba("train", tmp_path / "celeba"), None)


@pytest.fixture
def looked_at(monkeypatch):
    """The names of the files whose content was looked at."""
    paths = []

    def counted(path, check_image=image_check.check_image):
        paths.append(path.name)
        return check_image(path)

    monkeypatch.setattr(image_check, "check_image", counted)
    return paths


def test_good_files_are_remembered_until_they_change(folder, tmp_path, looked_at):
    memory = tmp_path / "run" / "logs" / "checked.npy"
    (folder / "train" / "002.png").write_bytes(b"")
    refused(folder, memory)
    assert len(looked_at) == 12
    looked_at.clear()
    refused(folder, memory)
    assert looked_at == ["002.png"]
    looked_at.clear()
    save(folder / "train" / "002.png", picture(8, 8))
    save(folder / "train" / "new.png")
    check(folder, memory)
    assert looked_at == ["002.png", "new.png"]
    looked_at.clear()
    check(folder, memory)
    assert looked_at == []
    # Of the same size as before.
    later = folder / "train" / "005.png"
    later.write_bytes(b"x" * later.stat().st_size)
    assert "005.png" in refused(folder, memory)
    assert looked_at == ["005.png"]


def test_what_was_good_for_one_set_need_not_be_for_another(tmp_path):
    save(tmp_path / "train" / "1.png", picture(33, 33))
    memory = tmp_path / "checked.npy"
    check(tmp_path, memory)
    assert "an image of 33 x 33" in refused(open_imagenet("imagenet32", "train", tmp_path), memory)


@pytest.mark.parametrize("content", [b"", b"nothing", b"\x93NUMPY"])
def test_a_memory_that_cannot_be_read_is_made_again(folder, tmp_path, looked_at, content):
    memory = tmp_path / "checked.npy"
    memory.write_bytes(content)
    check(folder, memory)
    assert len(looked_at) == 12
    check(folder, memory)
    assert len(looked_at) == 12


def test_transparency_is_said_once_and_remembered(folder, tmp_path, caplog):
    for number in range(3):
        save(folder / "train" / f"clear_{number}.png", Image.new("RGBA", (8, 8)))
    for _ in range(2):
        caplog.clear()
        with caplog.at_level("INFO"):
            check(folder, tmp_path / "checked.npy")
        said = [record.message for record in caplog.records if "transparent" in record.message]
        assert said == ["3 of 15 images can be transparent: where they are, white shows"]


@pytest.fixture
def by_processes(monkeypatch):
    monkeypatch.setattr(image_check, "_FILES_WORTH_A_PROCESS", 4)
    monkeypatch.setattr(image_check, "_FILES_AT_A_TIME", 2)


@pytest.mark.usefixtures("by_processes")
def test_processes_find_the_same(folder, tmp_path):
    (folder / "train" / "003.png").write_bytes(b"")
    deep_tiff(folder / "train" / "deep.tif")
    memory = tmp_path / "checked.npy"
    with_processes = refused(folder, memory)
    remembered = np.load(memory)
    image_check._FILES_WORTH_A_PROCESS = 1000
    assert refused(folder, tmp_path / "other.npy") == with_processes
    np.testing.assert_array_equal(np.load(tmp_path / "other.npy"), remembered)


@pytest.mark.usefixtures("by_processes")
def test_a_process_that_dies_does_not_hang_the_check(folder, monkeypatch):
    monkeypatch.setattr(image_check, "check_image", lambda path: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(RunFailed, match="process that checked images died"):
        check(folder)


def test_the_converter_names_all_before_it_writes_one(folder, tmp_path, capsys):
    for name in ("009.png", "010.png"):
        (folder / "train" / name).write_bytes(b"")
    command = ["folder", str(folder), str(tmp_path / "lmdb"), "--image_size=8"]
    assert convert(command) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: 2 of 12 images cannot be used: ")
    assert "009.png" in message
    assert "010.png" in message
    for name in ("009.png", "010.png"):
        save(folder / "train" / name)
    assert convert(command) == 0


def test_the_converter_leaves_out_no_empty_file(tmp_path, capsys):
    (tmp_path / "train").mkdir()
    for name in ("1.tfrecords", "2.tfrecords"):
        (tmp_path / "train" / name).write_bytes(b"")
    (tmp_path / "train" / "._1.tfrecords").write_bytes(b"litter")
    assert convert(["celeba_256", str(tmp_path), str(tmp_path / "lmdb")]) == 2
    assert "1.tfrecords: empty, as are 2 of 2 files" in capsys.readouterr().err


def test_the_converter_looks_at_what_is_left(folder, looked_at, tmp_path):
    command = ["folder", str(folder), str(tmp_path / "lmdb"), "--image_size=8"]
    assert convert(command) == 0
    looked_at.clear()
    assert convert(command) == 0
    assert looked_at == []


def test_other_paths_of_a_set_are_other_files(folder):
    images = open_image_folder("train", folder, 8, 3)
    assert replace(images, paths=images.paths[1:]).digest != images.digest
