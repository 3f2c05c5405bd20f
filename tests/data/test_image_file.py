"""One image file: deep ones are refused, transparent ones stand on white, and a look at its ends finds damage."""

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.image_files import chunk, deep_ppm, deep_tiff, picture, png, save
from util.data.image_file import BadImage, check_image, decode_image, read_image

GREEN, WHITE = (0, 255, 0), (255, 255, 255)


def both_refusals(path):
    """What reading a file and the look before a run say; both must refuse it."""
    messages = []
    for read in (lambda: read_image(path, 8, 3), lambda: check_image(path)):
        with pytest.raises(BadImage) as error:
            read()
        messages.append(str(error.value))
    assert "\n" not in messages[0]
    return messages


@pytest.mark.parametrize(("kind", "channels"), [(0, 1), (4, 2), (2, 3), (6, 4)])
def test_png_of_16_bits_is_refused_whatever_its_kind(tmp_path, kind, channels):
    values = np.repeat(np.linspace(0, 4095, 64).reshape(8, 8, 1), channels, 2).astype(np.uint16)
    png(tmp_path / "deep.png", values, kind, 16)
    first, second = both_refusals(tmp_path / "deep.png")
    assert first == second
    assert "deep.png: more than 8 bits a channel: convert (for example with mogrify -depth 8 FILE)" in first


@pytest.mark.parametrize(("name", "write"), [("deep.tif", deep_tiff), ("deep.ppm", deep_ppm)])
def test_other_formats_lose_no_bits_either(tmp_path, name, write):
    write(tmp_path / name)
    assert all("more than 8 bits" in message for message in both_refusals(tmp_path / name))


@pytest.mark.parametrize("name", ["a.bmp", "a.png", "a.jpg", "a.tif", "a.ppm", "a.webp"])
def test_8_bits_are_read(tmp_path, name):
    path = save(tmp_path / name)
    assert read_image(path, 8, 3).shape == (8, 8, 3)
    assert check_image(path) == ((8, 8), False)


def half_transparent(mode):
    """4 x 2: the left half opaque (10, 20, 30), the right half fully transparent green."""
    pixels = np.zeros((4, 2, 4), dtype=np.uint8)
    pixels[:, 0] = (10, 20, 30, 255)
    pixels[:, 1] = (0, 255, 0, 0)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
def test_transparent_pixels_are_white(tmp_path, name):
    options = {"lossless": True, "exact": True} if name.endswith("webp") else {}
    path = save(tmp_path / name, half_transparent("RGBA"), **options)
    image = decode_image(path, 3)
    assert image.getpixel((0, 0)) == (10, 20, 30)
    assert image.getpixel((1, 0)) == WHITE
    assert decode_image(path, 1).getpixel((1, 0)) == 255
    assert check_image(path) == ((2, 4), True)


def test_grey_with_alpha(tmp_path):
    path = save(tmp_path / "a.png", half_transparent("LA"))
    assert decode_image(path, 1).getpixel((1, 0)) == 255
    assert decode_image(path, 1).getpixel((0, 0)) == half_transparent("L").getpixel((0, 0))


def test_half_a_colour_is_mixed_with_white(tmp_path):
    path = save(tmp_path / "a.png", Image.new("RGBA", (2, 2), (0, 0, 200, 128)))
    np.testing.assert_allclose(decode_image(path, 3).getpixel((0, 0)), (127, 127, 227), atol=1)


def test_an_opaque_alpha_channel_changes_nothing(tmp_path):
    image = picture(16, 16)
    image.putalpha(255)
    path = save(tmp_path / "a.png", image)
    np.testing.assert_array_equal(np.asarray(decode_image(path, 3)), np.asarray(picture(16, 16)))


@pytest.mark.parametrize("levels", [0, bytes([255, 0])])
def test_transparency_of_a_palette(tmp_path, levels):
    image = Image.new("P", (2, 1))
    image.putpalette([*GREEN, *(1, 2, 3)] if levels == 0 else [*(1, 2, 3), *GREEN])
    image.putpixel((0, 0), 1 if levels == 0 else 0)
    image.putpixel((1, 0), 0 if levels == 0 else 1)
    path = save(tmp_path / "a.png", image, transparency=levels)
    assert [decode_image(path, 3).getpixel((x, 0)) for x in (0, 1)] == [(1, 2, 3), WHITE]


def test_one_transparent_colour(tmp_path):
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), GREEN)
    path = save(tmp_path / "a.png", image, transparency=GREEN)
    assert [decode_image(path, 3).getpixel((x, 0)) for x in (0, 1)] == [(1, 2, 3), WHITE]


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_one_transparent_level_of_grey(tmp_path, depth):
    """Level 0 is opaque black, the level above it (mid grey in most depths) is declared transparent."""
    png(tmp_path / "a.png", np.array([[[0], [1]]]), 0, depth, chunk(b"tRNS", struct.pack(">H", 1)))
    assert [decode_image(tmp_path / "a.png", 1).getpixel((x, 0)) for x in (0, 1)] == [0, 255]


def test_transparency_is_turned_with_the_photograph(tmp_path):
    orientation = Image.Exif()
    orientation[0x0112] = 6  # a quarter turn
    path = save(tmp_path / "a.png", half_transparent("RGBA"), exif=orientation)
    image = decode_image(path, 3)
    assert image.size == (4, 2)
    assert {image.getpixel((x, 0)) for x in range(4)} == {(10, 20, 30)}
    assert {image.getpixel((x, 1)) for x in range(4)} == {WHITE}


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp", "a.tif", "a.ppm"])
def test_a_look_at_the_ends_finds_files_that_are_cut_short(tmp_path, name):
    path = save(tmp_path / name, picture(64, 64))
    content = path.read_bytes()
    for damaged in (b"", b"\0", b"text", content[:30], content[: len(content) // 2], content[: len(content) - 40]):
        path.write_bytes(damaged)
        assert all(str(path) in message for message in both_refusals(path))
    path.write_bytes(b"")
    assert "it is empty" in both_refusals(path)[0]


def test_what_follows_a_whole_image_does_not_matter(tmp_path):
    path = save(tmp_path / "a.png")
    path.write_bytes(path.read_bytes() + b"\0" * 100)
    assert check_image(path) == ((8, 8), False)


def test_a_copy_by_pickle_is_the_same_error():
    error = BadImage(Path("a.png"), "nothing in it", "fill")
    assert str(pickle.loads(pickle.dumps(error))) == str(error) == "a.png: nothing in it: fill it"
