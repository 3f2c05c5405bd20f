import numpy as np
import pytest
import torch
from PIL import Image

from util.data.dataset import open_dataset
from util.errors import UsageError


def picture(height, width, channels=3, seed=0):
    values = np.random.default_rng(seed).integers(256, size=(height, width, channels), dtype=np.uint8)
    return Image.fromarray(values if channels == 3 else values[..., 0])


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
