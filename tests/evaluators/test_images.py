"""Grey levels, grids, colours and PNG files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from util.images import colorize, make_grid, save_png, to_uint8


def test_grey_levels_are_rounded_or_cut_off() -> None:
    values = torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 100.4 / 255, 100.6 / 255, 1.0, -0.5, 1.5])
    assert to_uint8(values).tolist() == [0, 0, 1, 100, 101, 255, 0, 255]
    assert to_uint8(values, truncate=True).tolist() == [0, 0, 0, 100, 100, 255, 0, 255]


def test_all_levels_survive() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(levels.float() / 255.0), levels)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("n", "side"), [(1, 1), (4, 2), (10, 4), (64, 8)])
def test_grid_holds_every_image(tmp_path: Path, n: int, side: int, channels: int) -> None:
    images = torch.randint(256, (n, channels, 8, 8), dtype=torch.uint8)
    grid = make_grid(images)
    assert grid.shape[2] == channels
    assert 512 <= grid.shape[1] <= 1024 + 2 * side
    save_png(tmp_path / "grid.png", grid)
    assert [entry.name for entry in tmp_path.iterdir()] == ["grid.png"]
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.mode == ("L" if channels == 1 else "RGB")
        pixels = np.atleast_3d(np.asarray(picture))
    np.testing.assert_array_equal(pixels, grid)
    scale = (grid.shape[1] + 2) // side
    for i in range(n):
        top, left = i // side * scale, i % side * scale
        cell = pixels[top : top + scale - 2, left : left + scale - 2]
        factor = (scale - 2) // 8
        np.testing.assert_array_equal(cell[::factor, ::factor], images[i].permute(1, 2, 0).numpy())


def test_float_images() -> None:
    images = torch.rand(4, 3, 16, 16)
    np.testing.assert_array_equal(make_grid(images), make_grid(to_uint8(images)))


def test_large_images_are_not_magnified() -> None:
    assert make_grid(torch.zeros(4, 3, 256, 256)).shape == (514, 514, 3)


def test_colors_grow_brighter_and_show_nan() -> None:
    colors = colorize(np.linspace(0.0, 1.0, 50)).astype(int)
    assert colors.shape == (50, 3)
    brightness = colors @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(brightness) > 0.0).all()
    assert colorize(np.array([[np.nan]])).tolist() == [[[0, 255, 0]]]
    np.testing.assert_array_equal(colorize(np.array([-1.0, 2.0])), colorize(np.array([0.0, 1.0])))
