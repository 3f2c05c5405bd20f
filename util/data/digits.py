"""The 1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn: a real data set without a
download.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
    Repository, 1998 (its test part).
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from util.data.image_array import ImageArray
from util.errors import UsageError

_SIZE = 8
_LARGEST_VALUE = 16
# The file runs through the classes 0 to 9 again and again, so the stride has to be prime to 10 for the test
# part to hold all of them.
_TEST_STRIDE = 7


@lru_cache(maxsize=1)
def _read_levels() -> np.ndarray:
    """float64 (1797, 8, 8), straight from the file: importing scikit-learn would take each rank a second."""
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise UsageError("digits: scikit-learn, which the images come with, is not installed: pip install scikit-learn")
    rows = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    return rows[:, :-1].reshape(-1, _SIZE, _SIZE)  # the last column is the class


def open_digits(split: str, image_size: int, image_channels: int) -> ImageArray:
    """The digits: 256 of them (every seventh) are the test split, the other 1,541 the training split.

    Grey levels 0..16 become round(255 level / 16). Sizes above 8 repeat pixels.

    Args:
        split: "train" or "test".
        image_size: a multiple of 8.
        image_channels: 1.

    Raises:
        UsageError: any other size or number of channels.
    """
    if image_size < _SIZE or image_size % _SIZE != 0:
        raise UsageError(f"image_size {image_size} does not fit data set digits: choose 8 or a multiple of it")
    if image_channels != 1:
        raise UsageError(f"image_channels {image_channels} does not fit data set digits: its images have 1 channel")
    levels = _read_levels()
    in_test = np.arange(len(levels)) % _TEST_STRIDE == _TEST_STRIDE - 1
    levels = levels[in_test if split == "test" else ~in_test]
    images = torch.from_numpy(np.rint(levels * (255.0 / _LARGEST_VALUE)).astype(np.uint8))[:, None]
    repeats = image_size // _SIZE
    return ImageArray("digits", images.repeat_interleave(repeats, dim=2).repeat_interleave(repeats, dim=3))
