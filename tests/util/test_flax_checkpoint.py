"""Files of unknown origin: every kind of array is read, everything else is one line."""

import msgpack
import numpy as np
import pytest
import torch

from util.errors import UsageError
from util.flax_checkpoint import flatten, parse_flax_checkpoint, read_flax_checkpoint


def array(values, code: int = 1) -> msgpack.ExtType:
    values = np.asarray(values)
    return msgpack.ExtType(code, msgpack.packb((values.shape, values.dtype.name, values.tobytes("C"))))


def parse(state) -> dict:
    return parse_flax_checkpoint(msgpack.packb(state), "state.msgpack")


@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "int64", "uint8", "uint32", "float16", "float32", "float64", "complex64"]
)
@pytest.mark.parametrize("shape", [(), (3,), (2, 0, 4), (2, 3, 4)])
def test_dtypes_and_shapes(dtype, shape):
    values = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    read = parse({"a": {"b": array(values)}})["a"]["b"]
    assert read.numpy().dtype == values.dtype
    np.testing.assert_array_equal(read.numpy(), values)


def test_half_precision_that_numpy_does_not_know():
    values = torch.tensor([1.0, -2.5, 3e38], dtype=torch.bfloat16)
    payload = msgpack.packb(((3,), "bfloat16", values.view(torch.int16).numpy().tobytes()))
    read = parse({"x": msgpack.ExtType(1, payload)})["x"]
    assert read.dtype == torch.bfloat16
    assert read.equal(values)


def test_scalars_plain_values_and_empty_maps():
    state = parse({"step": array(np.int32(7), code=3), "lr": 2e-4, "n": 3, "none": None, "model_state": {}})
    assert state["step"].dtype == torch.int32
    assert state["step"].item() == 7
    assert {name: state[name] for name in ("lr", "n", "none", "model_state")} == {
        "lr": 2e-4, "n": 3, "none": None, "model_state": {},
    }  # fmt: skip


def in_pieces(values, n_pieces, **changes):
    pieces = np.array_split(values.reshape(-1), n_pieces)
    return {
        "__msgpack_chunked_array__": True,
        "shape": {str(axis): size for axis, size in enumerate(values.shape)},
        "chunks": {str(index): array(piece) for index, piece in enumerate(pieces)},
        **changes,
    }


def test_an_array_in_pieces_even_more_than_ten():
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    read = parse({"w": {"kernel": in_pieces(values, 12)}})
    assert list(flatten(read)) == ["w/kernel"]
    np.testing.assert_array_equal(read["w"]["kernel"].numpy(), values)


def extension(*content, code=1):
    return msgpack.ExtType(code, msgpack.packb(content))


SIX = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"x": extension([2, 3], "float32", b"1234")}, "has 4 bytes"),
        ({"x": extension([2**40, 2**40], "float32", b"")}, "has 0 bytes"),
        ({"x": extension([-1], "float32", b"")}, "not the shape"),
        ({"x": extension([1.5], "float32", b"1234")}, "not the shape"),
        ({"x": extension([2**63, 0], "float32", b"")}, "not the shape"),
        ({"x": extension([1], "object", b"12345678")}, "unknown dtype 'object'"),
        ({"x": extension([1], "float32", "text")}, "not bytes"),
        ({"x": extension([1], "float32")}, "shape, dtype and numbers"),
        ({"x": msgpack.ExtType(1, b"\xc1")}, "not a readable"),
        ({"x": extension([1], "float32", b"1234", code=3)}, "a scalar has the shape"),
        ({"x": msgpack.ExtType(2, b"")}, "unknown extension type 2"),
        ({"x": list(range(100))}, "exceeds max_array_len"),
        ({1: 2}, "not allowed for map key"),
        ({b"x": 2}, "a name is a bytes"),
        ([1, 2], "map of names"),
        ({"x": in_pieces(SIX, 2, shape={"0": 7})}, "do not add up"),
        ({"x": in_pieces(SIX, 2, chunks={})}, "has none"),
        ({"x": in_pieces(SIX, 2, chunks={"1": array(SIX)})}, "lacks"),
        ({"x": in_pieces(SIX, 2, chunks={"0": array(SIX[0]), "1": array(SIX[1].astype("float64"))})}, "different"),
        ({"x": in_pieces(SIX, 2, shape=None)}, "lacks"),
        ({"a/b": 1, "a": {"b": 2}}, "two entries with the path 'a/b'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(state, message):
    with pytest.raises(UsageError, match=message) as caught:
        parse(state)
    assert str(caught.value).startswith("state.msgpack: ")
    assert "\n" not in str(caught.value)


def test_nesting_without_end():
    with pytest.raises(UsageError, match="not a readable"):
        parse_flax_checkpoint(b"\x81\xa1a" * 900 + b"\x01", "state.msgpack")
    with pytest.raises(UsageError, match="not a readable"):
        parse_flax_checkpoint(b"\x81\xa1a" * 100_000 + b"\x01", "state.msgpack")


def test_a_name_twice():
    with pytest.raises(UsageError, match="'a' occurs twice"):
        parse_flax_checkpoint(b"\x82\xa1a\x01\xa1a\x02", "state.msgpack")


def test_a_length_that_the_file_does_not_have():
    with pytest.raises(UsageError, match="not a readable"):
        parse_flax_checkpoint(b"\x81\xa1a\xc9\xff\xff\xff\xff\x01" + b"x" * 64, "state.msgpack")


def test_no_such_file(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        read_flax_checkpoint(tmp_path / "checkpoint_26")
