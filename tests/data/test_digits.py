import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from util.data.dataset import open_dataset
from util.errors import UsageError


def read_all(split, image_size=8):
    dataset = open_dataset("digits", split, "", image_size, 1, seed=0)
    return dataset.read(np.arange(dataset.length))


def test_the_splits_share_out_all_images():
    train, test = read_all("train"), read_all("test")
    assert train.dtype == torch.uint8
    assert train.shape[1:] == (1, 8, 8)
    ours = torch.cat([train, test]).flatten(1).numpy()
    theirs = np.rint(load_digits().images.reshape(-1, 64) * 255 / 16)
    np.testing.assert_array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])


def test_all_classes_are_in_the_test_split():
    data = load_digits()
    levels = {image.tobytes(): label for image, label in zip(data.images, data.target, strict=True)}
    images = read_all("test").double().mul(16 / 255).round()[:, 0].numpy()
    counts = np.bincount([levels[image.tobytes()] for image in images])
    assert counts.min() > 15
    assert len(counts) == 10


def test_the_darkest_and_brightest_level():
    images = read_all("train")
    assert images.min() == 0
    assert images.max() == 255


def test_larger_images_repeat_pixels():
    small, large = read_all("test"), read_all("test", 24)
    assert large.shape[1:] == (1, 24, 24)
    for row in range(3):
        for column in range(3):
            assert torch.equal(large[:, :, row::3, column::3], small)


@pytest.mark.parametrize(("size", "channels", "word"), [(12, 1, "image_size"), (4, 1, "image_size"), (8, 3, "channel")])
def test_other_shapes_are_refused(size, channels, word):
    with pytest.raises(UsageError, match=word) as error:
        open_dataset("digits", "train", "", size, channels, seed=0)
    assert "\n" not in str(error.value)


def test_unknown_names_and_splits_are_refused():
    with pytest.raises(UsageError, match="validation"):
        open_dataset("digits", "validation", "", 8, 1, seed=0)
    with pytest.raises(UsageError, match=r"choose one of .*digits"):
        open_dataset("digit", "train", "", 8, 1, seed=0)
