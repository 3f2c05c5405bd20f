"""Grids of images, colours for numbers, and PNG files."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from util.files import replacing

_SMALLEST_SIDE = 512
_GAP = 2
_TITLE_HEIGHT = 20
# From dark to bright in nearly equal steps of lightness, so that the picture also reads in grey.
_COLORS = np.array([[8, 10, 38], [66, 24, 104], [145, 41, 102], [220, 74, 64], [249, 152, 58], [252, 246, 196]])


def to_uint8(images: torch.Tensor, truncate: bool = False) -> torch.Tensor:
    """Grey levels 0 to 255 of float images in [0, 1], any shape; values outside are clipped.

    Levels are rounded to the nearest; ``truncate`` cuts the fraction off instead.
    """
    levels = (images.float() * 255.0).clamp(0.0, 255.0)
    return (levels if truncate else levels.round()).to(torch.uint8)


def make_grid(images: torch.Tensor) -> np.ndarray:
    """Images side by side on a black ground, as nearly square as their number allows.

    Small images are magnified by a whole factor, so that the grid is at least 512 pixels wide where possible
    without making it wider than twice that.

    Args:
        images: (B, C, H, W), C 1 or 3, uint8, or float in [0, 1].

    Returns:
        uint8 (rows, columns, C).
    """
    if images.dtype != torch.uint8:
        images = to_uint8(images)
    n, channels, height, width = images.shape
    n_columns = math.ceil(math.sqrt(n))
    n_rows = math.ceil(n / n_columns)
    magnify = max(1, math.ceil(_SMALLEST_SIDE / (n_columns * width)))
    height, width = height * magnify, width * magnify
    pixels = magnified(images.permute(0, 2, 3, 1).cpu().numpy(), magnify, axes=(1, 2))
    grid = np.zeros((n_rows * (height + _GAP) - _GAP, n_columns * (width + _GAP) - _GAP, channels), np.uint8)
    for i in range(n):
        top, left = i // n_columns * (height + _GAP), i % n_columns * (width + _GAP)
        grid[top : top + height, left : left + width] = pixels[i]
    return grid


def make_strips(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Sequences of images as strips: row i holds the images (T, H, W, C) of entry i of each array, side by side.

    Args:
        arrays: uint8 (N, T, H, W, C), N the same for all.

    Returns:
        uint8 (rows, columns, C), small images magnified by a whole factor; a wider gap lies between arrays.
    """
    magnify = max(1, round(64 / arrays[0].shape[2]))
    strips = []
    for array in arrays:
        frame = np.pad(magnified(array, magnify, axes=(2, 3)), ((0, 0), (0, 0), (0, _GAP), (0, _GAP), (0, 0)))
        n, length, height, width, channels = frame.shape
        strip = frame.transpose(0, 2, 1, 3, 4).reshape(n * height, length * width, channels)
        strips.append(np.pad(strip, ((0, 0), (0, 4 * _GAP), (0, 0))))
    return np.concatenate(strips, axis=1)


def side_by_side(grids: Mapping[str, np.ndarray], n_columns: int = 4) -> np.ndarray:
    """Pictures of one size in rows, each under its title.

    Args:
        grids: by title, uint8 (rows, columns, C), the same shape for all.
        n_columns: pictures in a row.

    Returns:
        uint8 (rows, columns, C), on a white ground.
    """
    panels = []
    for title, grid in grids.items():
        heading = Image.new("L", (grid.shape[1], _TITLE_HEIGHT), 255)
        ImageDraw.Draw(heading).text((4, 4), title, fill=0)
        pixels = np.repeat(np.asarray(heading)[:, :, None], grid.shape[2], axis=2)
        panels.append(np.pad(np.concatenate([pixels, grid]), ((0, 0), (0, 4 * _GAP), (0, 0)), constant_values=255))
    panels += [np.full_like(panels[0], 255)] * (-len(panels) % min(n_columns, len(panels)))
    rows = [panels[start : start + n_columns] for start in range(0, len(panels), n_columns)]
    return np.concatenate([np.concatenate(row, axis=1) for row in rows])


def magnified(array: np.ndarray, factor: int, axes: tuple[int, int] = (0, 1)) -> np.ndarray:
    """Every pixel repeated ``factor`` times along both axes."""
    return array.repeat(factor, axis=axes[0]).repeat(factor, axis=axes[1])


def colorize(values: np.ndarray) -> np.ndarray:
    """Colours uint8 (..., 3) for numbers in [0, 1], dark to bright; a NaN is shown in green."""
    position = np.nan_to_num(np.clip(values, 0.0, 1.0)) * (len(_COLORS) - 1)
    anchors = np.arange(len(_COLORS))
    colors = np.stack([np.interp(position, anchors, _COLORS[:, channel]) for channel in range(3)], axis=-1)
    colors[np.isnan(values)] = (0, 255, 0)
    return colors.round().astype(np.uint8)


def save_png(path: Path, pixels: np.ndarray) -> None:
    """Write uint8 (H, W, C) pixels, C 1 or 3, as a PNG file that appears whole or not at all."""
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG")
