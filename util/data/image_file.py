"""One image file, read through Pillow: what is wrong with it, its pixels, its fit to a set."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageFile, ImageOps

from util.errors import UsageError

MODES = {1: "L", 3: "RGB"}
# A whole file of these formats ends so, nearly always.
_ENDS = {"PNG": b"\0\0\0\0IEND\xaeB`\x82", "JPEG": b"\xff\xd9"}
# Grey levels of fewer than 8 bits are spread over 0 to 255, except the transparent one, which Pillow leaves as it is.
_STEPS_OF_GREY = {"1": 255, "L;2": 85, "L;4": 17}
_BITS_PER_SAMPLE = 258


class BadImage(UsageError):
    """A file that cannot be used.

    Args:
        path: the file.
        reason: what is wrong with it.
        cure: what to do with it, as in "repair or remove".
    """

    def __init__(self, path: Path, reason: str, cure: str = "repair or remove") -> None:
        super().__init__(path, reason, cure)
        self.path, self.reason, self.cure = path, reason, cure

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}: {self.cure} it"


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[ImageFile.ImageFile]:
    """An image whose header has been read.

    Raises:
        BadImage: not an image, more than 8 bits a channel, or whatever decoding it in the block raises.
    """
    try:
        with Image.open(path) as image:
            if _is_deep(image):
                raise BadImage(
                    path, "more than 8 bits a channel", "convert (for example with mogrify -depth 8 FILE) or remove"
                )
            yield image
    # Decoders of damaged files raise nearly anything; whatever it is, the file cannot be read.
    except (OSError, ValueError, SyntaxError, IndexError, EOFError, Image.DecompressionBombError) as error:
        with contextlib.suppress(OSError):
            if path.stat().st_size == 0:
                raise BadImage(path, "cannot be read as an image (it is empty)") from None
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise BadImage(path, f"cannot be read as an image ({reason})") from None


def _is_deep(image: ImageFile.ImageFile) -> bool:
    """Whether a channel has more than 8 bits, which Pillow would clip to 255 or cut off without a word."""
    layout = image.tile[0].args if image.tile else None
    return (
        image.mode.startswith(("I", "F"))
        or (image.format == "PNG" and str(layout).endswith(";16B"))
        or (image.format == "TIFF" and max(getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (1,))) > 8)
        # The largest value that the file may hold.
        or (image.format == "PPM" and isinstance(layout, tuple) and isinstance(layout[-1], int) and layout[-1] > 255)
    )


def check_image(path: Path) -> tuple[tuple[int, int], bool]:
    """Look at the header and the end of a file, and decode it only where its end is not that of a whole one.

    Returns:
        its (width, height), and whether it may be transparent somewhere.

    Raises:
        BadImage: as ``decode_image``; damage in the middle of a file is not seen.
    """
    with _opened(path) as image:
        size, transparent, end = image.size, image.has_transparency_data, _ENDS.get(image.format or "")
        if end is None or image.fp is None or not _ends_with(image.fp, end):
            image.load()
    return size, transparent


def _ends_with(file: IO[bytes], end: bytes) -> bool:
    """Whether a file ends so; leaves it where it is."""
    here = file.tell()
    file.seek(-len(end), os.SEEK_END)
    found = file.read()
    file.seek(here)
    return found == end


def decode_image(path: Path, image_channels: int) -> Image.Image:
    """One image file, upright, on white where it is transparent, in grey (1 channel) or colour (3).

    Raises:
        BadImage: a file that is not an image, is damaged, or has more than 8 bits a channel.
    """
    with _opened(path) as image:
        if isinstance(image.info.get("transparency"), int) and image.tile:
            image.info["transparency"] *= _STEPS_OF_GREY.get(str(image.tile[0].args), 1)
        upright = ImageOps.exif_transpose(image)
        if upright.has_transparency_data:
            upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright.convert("RGBA"))
        return upright.convert(MODES[image_channels])


def read_image(path: Path, image_size: int, image_channels: int) -> np.ndarray:
    """One image as uint8 (H, W, C), its short side resized to ``image_size`` and its centre cut out.

    Raises:
        BadImage: as ``decode_image``.
    """
    image = decode_image(path, image_channels)
    if image.size != (image_size, image_size):
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(image_size, image_size, image_channels)


def require_size(path: Path, size: tuple[int, int], image_size: int) -> None:
    """Raise BadImage for an image, (width, height), of a set whose images have the size already."""
    width, height = size
    if size != (image_size, image_size):
        raise BadImage(path, f"an image of {height} x {width} in a set of {image_size} x {image_size}", "replace")


def read_image_as_it_is(path: Path, image_size: int, image_channels: int) -> np.ndarray:
    """One image as uint8 (H, W, C), of a set whose images have the size already.

    Raises:
        BadImage: as ``decode_image`` and ``require_size``.
    """
    image = decode_image(path, image_channels)
    require_size(path, image.size, image_size)
    return np.asarray(image).reshape(image_size, image_size, image_channels)
