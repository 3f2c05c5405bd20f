import numpy as np
import pytest
from PIL import Image

from util.convert_to_lmdb import main
from util.data.dataset import open_dataset
from util.errors import UsageError


def make_images(n):
    return np.random.default_rng(0).integers(256, size=(n, 218, 178, 3), dtype=np.uint8)


def triangle_filter(n_in, n_out):
    """(n_out, n_in): weights of an antialiased bilinear resize, from the definition of its filter."""
    scale = n_in / n_out
    centres = (np.arange(n_out) + 0.5) * scale
    distance = np.abs(np.arange(n_in) + 0.5 - centres[:, None]) / scale
    weights = np.maximum(1.0 - distance, 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


def expected(image):
    """(64, 64, 3) in floating point."""
    cut = image[39:179, 19:159].astype(np.float64)
    weights = triangle_filter(140, 64)
    return np.einsum("ah,bw,hwc->abc", weights, weights, cut, optimize=True)


def write_release(folder, images, parts, partition="list_eval_partition.txt"):
    (folder / "img_align_celeba").mkdir(parents=True)
    lines = []
    for number, (image, part) in enumerate(zip(images, parts, strict=True), start=1):
        Image.fromarray(image).save(folder / "img_align_celeba" / f"{number:06}.jpg", format="PNG")
        lines.append(f"{number:06}.jpg {part}\n")
    (folder / partition).parent.mkdir(exist_ok=True)
    (folder / partition).write_text("".join(lines))


def open_split(folder, split="train", image_size=64, image_channels=3):
    return open_dataset("celeba_64", split, folder, image_size, image_channels, seed=0)


def refused(folder, *arguments, **options):
    with pytest.raises(UsageError) as error:
        open_split(folder, *arguments, **options).read(np.array([0]))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("partition", ["list_eval_partition.txt", "Eval/list_eval_partition.txt"])
def test_the_release_is_cut_and_resized_with_one_rounding(tmp_path, partition):
    images = make_images(6)
    write_release(tmp_path, images, [0, 1, 0, 2, 2, 0], partition)
    for split, rows in (("train", [0, 2, 5]), ("test", [3, 4])):
        dataset = open_split(tmp_path, split)
        assert (dataset.length, dataset.shape) == (len(rows), (3, 64, 64))
        read = dataset.read(np.arange(len(rows))).numpy().transpose(0, 2, 3, 1)
        for image, row in zip(read, rows, strict=True):
            assert np.abs(image - expected(images[row])).max() <= 0.5 + 1e-9


def test_conversion_of_all_parts(tmp_path):
    images = make_images(4)
    write_release(tmp_path / "source", images, [0, 1, 2, 0])
    for split in ("train", "validation", "test"):
        assert main(["celeba_64", str(tmp_path / "source"), str(tmp_path / "lmdb"), f"--split={split}"]) == 0
    for split in ("train", "test"):
        original, converted = open_split(tmp_path / "source", split), open_split(tmp_path / "lmdb", split)
        assert converted.length == original.length
        indices = np.arange(original.length)
        np.testing.assert_array_equal(converted.read(indices).numpy(), original.read(indices).numpy())


def test_folders_of_images_that_have_the_size_already_are_taken_as_they_are(tmp_path):
    small = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    for split, image in (("train", small), ("validation", make_images(1)[0])):
        (tmp_path / split).mkdir()
        Image.fromarray(image).save(tmp_path / split / "a.png")
    np.testing.assert_array_equal(open_split(tmp_path).read(np.array([0]))[0].permute(1, 2, 0).numpy(), small)
    read = open_split(tmp_path, "test").read(np.array([0]))[0].permute(1, 2, 0).numpy()
    assert np.abs(read - expected(make_images(1)[0])).max() <= 0.5 + 1e-9


def test_what_is_missing_or_wrong_is_named(tmp_path):
    assert "img_align_celeba" in refused(tmp_path)
    assert "set image_size 64" in refused(tmp_path, image_size=32)
    write_release(tmp_path, make_images(2), [0, 0])
    partition = tmp_path / "list_eval_partition.txt"
    assert "names no image of part test" in refused(tmp_path, "test")
    partition.write_text("000001.jpg 0\n000002.jpg\n")
    assert f"{partition}, line 2" in refused(tmp_path)
    partition.write_text("000001.jpg 0\n000003.jpg 0\n")
    assert "no 000003.jpg" in refused(tmp_path)
    partition.unlink()
    assert "no list_eval_partition.txt" in refused(tmp_path)


def test_small_and_damaged_images_are_named(tmp_path, capsys):
    write_release(tmp_path, make_images(2), [0, 0])
    path = tmp_path / "img_align_celeba" / "000001.jpg"
    good = path.read_bytes()
    Image.new("RGB", (178, 100)).save(path)
    assert f"{path}: 100 x 178 is too small" in refused(tmp_path)
    path.write_bytes(good[: len(good) // 2])
    assert str(path) in refused(tmp_path)
    assert main(["celeba_64", str(tmp_path), str(tmp_path / "lmdb")]) == 2
    assert str(path) in capsys.readouterr().err
