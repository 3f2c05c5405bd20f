import os
import time

import numpy as np
import pytest

from tests.data import tfrecord_files
from util.data.crc32c import crc32c
from util.data.tfrecord import masked_crc32c, read_image_example, read_records
from util.errors import UsageError


def test_crc32c_of_the_examples_of_the_standard():
    # RFC 3720, appendix B.4, and the check value of the catalogue of cyclic redundancy checks.
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(bytes(range(31, -1, -1))) == 0x113FDB5C
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(b"") == 0


@pytest.mark.parametrize("length", [*range(1, 40), 63, 64, 65, 1000, 4093])
def test_crc32c_of_any_length(length):
    data = np.random.default_rng(length).bytes(length)
    assert crc32c(data) == tfrecord_files.crc32c(data)


def seconds(function, *arguments) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def test_a_record_of_celeba_is_checked_ten_times_faster_than_bit_by_bit():
    data = os.urandom(256 * 256 * 3)
    crc32c(data)
    assert min(seconds(crc32c, data) for _ in range(5)) < seconds(tfrecord_files.crc32c, data[: len(data) // 10])


def test_masked_checksum():
    assert masked_crc32c(b"score").to_bytes(4, "little") == tfrecord_files.masked(b"score")


@pytest.mark.parametrize("packed", [True, False])
def test_an_image_is_read_from_its_example(packed):
    image = np.random.default_rng(0).integers(256, size=(5, 4, 3), dtype=np.uint8)
    np.testing.assert_array_equal(read_image_example(tfrecord_files.example(image, packed)), image)


def test_messages_that_are_not_images_are_refused():
    good = tfrecord_files.example(tfrecord_files.make_images(1, 4)[0])
    without_shape = tfrecord_files.field(
        1, tfrecord_files.field(1, tfrecord_files.field(1, b"data") + tfrecord_files.field(2, b""))
    )
    for message in (b"", without_shape, b"\x0a\xff", b"\x0a" + b"\xff" * 11, b"\x0b", good[:-1]):
        with pytest.raises(ValueError, match=r"message|image"):
            read_image_example(message)


def test_damage_inside_a_message_never_gives_an_image_of_another_size():
    image = tfrecord_files.make_images(1, 4)[0]

    def size_of_image(message):
        try:
            return read_image_example(message).size
        except ValueError:
            return None

    good = tfrecord_files.example(image)
    for at in range(len(good)):
        damaged = bytearray(good)
        damaged[at] ^= 0x15
        assert size_of_image(bytes(damaged)) in (image.size, None)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.tfrecords"
    parts = [tfrecord_files.record(bytes([number]) * (50 + number)) for number in range(4)]
    path.write_bytes(b"".join(parts))
    return path, [len(part) for part in parts]


def test_records_and_their_offsets(file):
    path, sizes = file
    records = list(read_records(path, 0))
    assert [data for data, _, _ in records] == [bytes([number]) * (50 + number) for number in range(4)]
    assert [after - start for _, start, after in records] == sizes
    assert list(read_records(path, records[1][2])) == records[2:]
    assert list(read_records(path, sum(sizes))) == []


def test_every_flipped_bit_is_noticed_and_named(file):
    path, sizes = file
    good = path.read_bytes()
    second = sizes[0]
    for at in range(second, second + sizes[1]):
        damaged = bytearray(good)
        damaged[at] ^= 1 << (at % 8)
        path.write_bytes(damaged)
        with pytest.raises(UsageError) as error:
            list(read_records(path, 0))
        assert f"{path}, record at byte {second}: " in str(error.value)
        assert "\n" not in str(error.value)


def test_every_truncation_is_noticed_and_named(file):
    path, sizes = file
    good = path.read_bytes()
    last = sum(sizes[:3])
    for size in range(last + 1, len(good)):
        path.write_bytes(good[:size])
        with pytest.raises(UsageError, match=f"record at byte {last}: cut short"):
            list(read_records(path, 0))
