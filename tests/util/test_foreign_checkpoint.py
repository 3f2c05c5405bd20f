"""What checkpoints of other programs may look like: types in them, prefixes of names, wrappings around it all."""

import argparse
import datetime
import functools
import itertools
from collections import OrderedDict, defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from util.errors import UsageError
from util.foreign_checkpoint import read_foreign, unwrapped, without_prefixes


def read_back(value: Any, folder: Path) -> Any:
    torch.save({"value": value}, folder / "in.pth")
    return read_foreign(folder / "in.pth")["value"]


def counted() -> dict:
    counts: dict = defaultdict(list)
    counts["a"].append(1)
    return counts


READ = {
    "number": (np.float64(0.1), 0.1),
    "whole number": (np.int32(7), 7),
    "boolean": (np.bool_(True), True),
    "text": (np.str_("text"), "text"),
    "inside": ([{"a": (np.int64(1), "b")}], [{"a": (1, "b")}]),
    "defaultdict": (counted(), {"a": [1]}),
    "namespace": (argparse.Namespace(folder=Path("/a"), size=3), argparse.Namespace(folder=Path("/a"), size=3)),
    "numbers in a namespace": (argparse.Namespace(rate=np.float32(2)), argparse.Namespace(rate=2.0)),
    "of the other byte order": (np.array([1, 258], dtype=">i2")[1], 258),
    "simple namespace": (SimpleNamespace(size=3), SimpleNamespace(size=3)),
    "dtype": (torch.float16, torch.float16),
    "shape": (torch.Size([1, 2]), (1, 2)),
}


@pytest.mark.parametrize("case", READ)
def test_safe_types_are_read(case: str, tmp_path: Path) -> None:
    value, expected = READ[case]
    found = read_back(value, tmp_path)
    assert found == expected
    assert type(found) is type(expected)


ARRAYS = {
    "plain": np.arange(6.0, dtype=np.float32).reshape(2, 3),
    "by columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "of the other byte order": np.arange(3, dtype=">f8"),
    "no axes": np.array(3.5),
    "empty": np.zeros((0, 2)),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays_are_tensors(case: str, tmp_path: Path) -> None:
    found = read_back(argparse.Namespace(inside=[ARRAYS[case]]), tmp_path).inside[0]
    assert isinstance(found, torch.Tensor)
    np.testing.assert_array_equal(found.numpy(), ARRAYS[case])


class Forged:
    """A dtype with flags of its own, as only a file can have it."""

    def __reduce__(self) -> tuple:
        return np.dtype, ("f8", False, True), (3, "<", None, None, None, -1, -1, 1)


class ForgedArray:
    def __reduce__(self) -> tuple:
        function, arguments, state = np.zeros(2).__reduce__()
        return function, arguments, (*state[:2], Forged(), *state[3:])


def test_flags_of_a_dtype_mean_nothing(tmp_path: Path) -> None:
    assert read_back(ForgedArray(), tmp_path).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("shape", [(3,), (1 << 40,)])
def test_a_shape_that_is_not_that_of_the_bytes(shape: tuple[int, ...], tmp_path: Path) -> None:
    class Short:
        def __reduce__(self) -> tuple:
            function, arguments, state = np.zeros(2).__reduce__()
            return function, arguments, (state[0], shape, *state[2:])

    with pytest.raises(UsageError, match="cannot reshape"):
        read_back(Short(), tmp_path)


class OfAnotherProgram:
    pass


REFUSED = {
    "object": (OfAnotherProgram(), "test_foreign_checkpoint.OfAnotherProgram"),
    "module": (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
    "moment": (datetime.datetime(2020, 1, 1), "datetime.datetime"),
    "function": (functools.partial(print), "functools.partial"),
    "objects in an array": (np.array([1, "a"], dtype=object), "dtype 'O8' is not read"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_types_are_named(case: str, tmp_path: Path) -> None:
    value, name = REFUSED[case]
    with pytest.raises(UsageError) as caught:
        read_back(value, tmp_path)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pickle_protocol_that_is_not_read_is_said(tmp_path: Path) -> None:
    torch.save({"value": 1}, tmp_path / "in.pth", pickle_protocol=4)
    with pytest.raises(UsageError, match="pickle protocol"):
        read_foreign(tmp_path / "in.pth")


STATE = OrderedDict((name, torch.zeros(1)) for name in ("input.weight", "modules.0.bias"))


@pytest.mark.parametrize(
    "prefix", ["".join(words) for n in range(4) for words in itertools.product(["module.", "_orig_mod."], repeat=n)]
)
def test_prefixes_in_any_order(prefix: str) -> None:
    prefixed = {prefix + name: tensor for name, tensor in STATE.items()}
    assert list(without_prefixes(prefixed, "file")) == list(STATE)


def test_a_part_that_was_compiled() -> None:
    names = without_prefixes({"module.phi._orig_mod.weight": 0, "module.gamma": 0}, "file")
    assert list(names) == ["phi.weight", "gamma"]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_a_prefix_of_some_entries_is_named(prefix: str) -> None:
    with pytest.raises(UsageError, match=r"file: entry 'modules\.0\.bias' lacks the prefix"):
        without_prefixes({f"{prefix}input.weight": 0, "modules.0.bias": 0}, "file")


def test_two_entries_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match=r"both 'a\.weight'"):
        without_prefixes({"a.weight": 0, "a._orig_mod.weight": 1}, "file")


def test_wrappings() -> None:
    assert unwrapped({"state_dict": {"model": STATE}, "epoch": 3}) is STATE
    outer = {"model": STATE, "ema": {}}
    assert unwrapped(outer, "ema") is outer
    assert unwrapped({"state_dict": outer}, "ema") is outer
    ambiguous = {"state_dict": STATE, "net": STATE}
    assert unwrapped(ambiguous) is ambiguous
    assert unwrapped(3) == 3
