import os

import numpy as np
import pytest
import torch
from PIL import Image

from evaluators.statistics import __main__ as statistics
from tests.data.image_files import picture, save, save_many
from tests.data.test_downsampled_imagenet import write_batches
from util.convert_to_lmdb import main as convert
from util.data.dataset import open_dataset
from util.data.image_folder import list_images
from util.errors import UsageError


def open_folder(folder, split="train", image_size=8, image_channels=3):
    return open_dataset("folder", split, folder, image_size, image_channels, seed=0)


def refused(folder, **options):
    with pytest.raises(UsageError) as error:
        open_folder(folder, **options).read(np.array([0]))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_images_are_read_in_sorted_order_from_folders_below(tmp_path):
    names = ["a/2.png", "a/10.png", "b/c/1.png", "z.png"]
    for seed, name in enumerate(names):
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        picture(8, 8, seed=seed).save(tmp_path / "train" / name)
    (tmp_path / "train" / "notes.txt").write_text("not an image")
    dataset = open_folder(tmp_path)
    assert dataset.length == 4
    assert dataset.shape == (3, 8, 8)
    images = dataset.read(np.array([3, 0, 1]))
    assert images.dtype == torch.uint8
    for image, seed in zip(images, (3, 1, 0), strict=True):
        np.testing.assert_array_equal(image.numpy(), np.asarray(picture(8, 8, seed=seed)).transpose(2, 0, 1))


def test_other_sizes_are_resized_and_the_centre_cut_out(tmp_path):
    (tmp_path / "test").mkdir()
    wide = np.zeros((16, 48, 3), dtype=np.uint8)
    wide[:, 16:32] = (10, 200, 30)
    Image.fromarray(wide).save(tmp_path / "test" / "wide.png")
    image = open_folder(tmp_path, "test").read(np.array([0]))[0]
    assert image.shape == (3, 8, 8)
    # The edge between black and colour lies within the reach of the resizing filter.
    assert (image[:, :, 2:-2] == torch.tensor([10, 200, 30])[:, None, None]).all()


def test_grey_and_colour_are_turned_into_each_other(tmp_path):
    (tmp_path / "train").mkdir()
    picture(8, 8, channels=1).save(tmp_path / "train" / "grey.png")
    grey = open_folder(tmp_path, image_channels=1).read(np.array([0]))
    assert grey.shape == (1, 1, 8, 8)
    assert torch.equal(open_folder(tmp_path).read(np.array([0])), grey.expand(1, 3, 8, 8))


def test_photographs_are_turned_as_their_camera_was(tmp_path):
    (tmp_path / "train").mkdir()
    upright = picture(8, 8)
    orientation = Image.Exif()
    orientation[0x0112] = 3  # turned by 180 degrees
    upright.rotate(180).save(tmp_path / "train" / "a.png", exif=orientation)
    image = open_folder(tmp_path).read(np.array([0]))[0]
    np.testing.assert_array_equal(image.numpy(), np.asarray(upright).transpose(2, 0, 1))


def test_validation_stands_in_for_test(tmp_path):
    (tmp_path / "validation").mkdir()
    picture(8, 8).save(tmp_path / "validation" / "a.png")
    assert open_folder(tmp_path, "test").length == 1


def test_missing_and_empty_folders_are_named(tmp_path):
    assert str(tmp_path / "train") in refused(tmp_path)
    (tmp_path / "train").mkdir()
    assert "no image" in refused(tmp_path)


@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_damaged_images_are_named(tmp_path, extension):
    (tmp_path / "train").mkdir()
    path = tmp_path / "train" / f"a.{extension}"
    picture(64, 64).save(path)
    content = path.read_bytes()
    for damaged in (b"", b"text", content[: len(content) // 2], content[:200] + b"\xff" * 100 + content[300:]):
        path.write_bytes(damaged)
        if damaged.startswith(content[:200]) and len(damaged) == len(content) and extension == "jpg":
            continue  # JPEG has no checksums: other pixels are all that comes of it
        assert str(path) in refused(tmp_path)


def test_deep_images_are_refused_instead_of_clipped(tmp_path):
    (tmp_path / "train").mkdir()
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(tmp_path / "train" / "deep.png")
    assert "deep.png" in refused(tmp_path, image_channels=1)


def test_other_numbers_of_channels_are_refused(tmp_path):
    (tmp_path / "train").mkdir()
    picture(8, 8).save(tmp_path / "train" / "a.png")
    assert "image_channels 2" in refused(tmp_path, image_channels=2)


def names(folder):
    return [str(path.relative_to(folder)) for path in list_images(folder)]


@pytest.fixture
def linked(tmp_path):
    """Class folders as on a cluster: one here, one that is a link to another disk, one that leads back up."""
    save_many(tmp_path / "disk", 12, first=100)
    save_many(tmp_path / "set" / "train" / "real", 6)
    save_many(tmp_path / "set" / "test", 4, first=200)
    (tmp_path / "set" / "train" / "other").symlink_to(tmp_path / "disk")
    (tmp_path / "set" / "train" / "loop").symlink_to(tmp_path / "set" / "train")
    return tmp_path / "set"


def test_links_to_folders_are_followed_and_loops_are_not(linked):
    others, real = [f"other/{n}.png" for n in range(100, 112)], [f"real/{n:03}.png" for n in range(6)]
    assert names(linked / "train") == others + real


def test_folders_that_lead_to_each_other_are_read_once(tmp_path):
    for name, other in (("a", "b"), ("b", "a")):
        save_many(tmp_path / name, 2)
        (tmp_path / name / "see_also").symlink_to(tmp_path / other)
    assert names(tmp_path) == ["a/000.png", "a/001.png", "b/000.png", "b/001.png"]


def test_a_folder_with_two_links_to_it_is_read_once(tmp_path):
    save_many(tmp_path / "disk" / "inner", 3)
    for name, target in (("a", "disk/inner"), ("b", "disk"), ("c", "disk/inner")):
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set" / name).symlink_to(tmp_path / target)
    assert names(tmp_path / "set") == ["a/000.png", "a/001.png", "a/002.png"]


def test_a_link_does_not_rename_what_it_leads_to(tmp_path):
    save_many(tmp_path / "z", 2)
    before = names(tmp_path)
    (tmp_path / "a").symlink_to(tmp_path / "z")
    assert names(tmp_path) == before


def test_a_split_and_an_image_may_be_links(tmp_path):
    save_many(tmp_path / "disk", 2)
    (tmp_path / "train").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "second.png").symlink_to(tmp_path / "disk" / "000.png")
    assert names(tmp_path / "train") == ["000.png", "001.png", "second.png"]


@pytest.mark.parametrize("target", ["../unmounted/cats", "cats"])
def test_a_link_that_leads_nowhere_is_named(tmp_path, target):
    save_many(tmp_path / "train", 2)
    (tmp_path / "train" / "cats").symlink_to(target)
    assert str(tmp_path / "train" / "cats") in refused(tmp_path)


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    save_many(tmp_path / "train" / "mine", 2)
    save_many(tmp_path / "train" / "yours", 2)
    scandir = os.scandir

    def forbidding(path):
        if str(path).endswith("yours"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidding)
    assert f"{tmp_path / 'train' / 'yours'}: cannot be read (Permission denied)" in refused(tmp_path)


@pytest.fixture
def litter(tmp_path):
    """Three images, among what systems and people leave beside them."""
    train = tmp_path / ".mine" / "set" / "train"
    save_many(train, 2)
    save(train / "UPPER.PNG")
    for name in ("._000.png", ".DS_Store", "Thumbs.db", "README.txt"):
        (train / name).write_bytes(b"\0\5\26\7not an image")
    for folder in (".ipynb_checkpoints", "__MACOSX", "@eaDir/000.png", "$RECYCLE.BIN", "#recycle"):
        save(train / folder / "000.png")
    (train / ".git").symlink_to("nowhere")
    return train.parent


def test_litter_is_never_data(litter):
    assert names(litter / "train") == ["000.png", "001.png", "UPPER.PNG"]


def test_litter_beside_other_files_is_none_either(tmp_path):
    write_batches(tmp_path, "npz")
    for folder in ("__MACOSX", ".ipynb_checkpoints"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train_data_batch_1.npz").write_bytes(b"nothing")
    assert open_dataset("imagenet32", "train", tmp_path, 32, 3, seed=0).is_image


def test_every_reader_finds_the_same_images(linked, litter, tmp_path, capfd):
    for source, n_images in ((linked, 18), (litter, 3)):
        assert open_folder(source).length == n_images
        target = tmp_path / f"lmdb_{n_images}"
        assert convert(["folder", str(source), str(target), "--image_size=8"]) == 0
        assert f"train: {n_images} images in" in capfd.readouterr().out
        assert open_dataset("lmdb", "train", target, 8, 3, seed=0).length == n_images
        words = ["--dataset=folder", f"--data_location={source}", "--image_size=8", f"--output={tmp_path / 's.npz'}"]
        assert statistics.main(words) == 0
        assert f"of {n_images} images" in capfd.readouterr().out


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_other_names_of_a_test_split(tmp_path, name):
    save_many(tmp_path / "train", 2)
    save_many(tmp_path / name, 3)
    assert open_folder(tmp_path, "test").length == 3
    for split in ("validation", "test"):
        assert convert(["folder", str(tmp_path), str(tmp_path / "lmdb"), "--image_size=8", f"--split={split}"]) == 0
    assert open_dataset("lmdb", "test", tmp_path / "lmdb", 8, 3, seed=0).length == 3
    save_many(tmp_path / "test", 4)
    assert open_folder(tmp_path, "test").length == 4
