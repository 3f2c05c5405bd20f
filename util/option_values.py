"""From the text of an option to its value, and back."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import re
import typing
from collections.abc import Callable
from typing import Any

from util.option import Option


@functools.cache
def options_of(group: type) -> tuple[Option, ...]:
    """The options among the fields of a dataclass, those that it inherits first."""
    kinds = typing.get_type_hints(group)
    owners: dict[str, type] = {}
    for owner in reversed(group.__mro__):
        for name in vars(owner).get("__annotations__", {}):
            owners.setdefault(name, owner)
    return tuple(
        Option(
            item.metadata["flag"] or item.name, item.name, kinds[item.name], item.default, owners[item.name],
            item.metadata,
        )
        for item in dataclasses.fields(group)
        if "effect" in item.metadata
    )  # fmt: skip


def flags_of(group: type) -> set[str]:
    """The flags of a dataclass's options."""
    return {option.flag for option in options_of(group)}


def written(value: Any) -> str:
    """The text of a value, as the command line takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ",".join(str(entry) for entry in value)
    return str(value)


def written_in_file(value: Any) -> str:
    """The text of a value as a configuration file takes it: in quotes where it would read back as something else."""
    text = written(value)
    if isinstance(value, (list, tuple)):
        return text or "[]"
    if text and text == text.strip() and text.isprintable() and not re.search(r"^[\"'#;\[]|\s[#;]", text):
        return text
    return json.dumps(text)


def plain(value: Any) -> Any:
    """A value of which JSON and snapshots know the type."""
    return list(value) if isinstance(value, tuple) else value


def _read_bool(text: str) -> bool:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in words:
        raise ValueError("true or false expected")
    return words[text.lower()]


def _read_int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        number = _read_float(text)
        if not number.is_integer():
            raise ValueError("a whole number expected") from None
        return int(number)


def _read_float(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError("a number expected") from None
    if not math.isfinite(number):
        raise ValueError("a finite number expected")
    return number


def _read_integers(text: str) -> tuple[int, ...]:
    return tuple(_read_int(part.strip()) for part in text.strip("[]() ").split(",") if part.strip())


def _read_int_or_auto(text: str) -> int | str:
    return "auto" if text == "auto" else _read_int(text)


def _read_text(text: str) -> str:
    if "\0" in text:
        raise ValueError("text without a null character expected")
    return text


READERS: dict[Any, Callable[[str], Any]] = {
    bool: _read_bool,
    int: _read_int,
    float: _read_float,
    str: _read_text,
    tuple[int, ...]: _read_integers,
    int | str: _read_int_or_auto,
}
"""How each type of option is read from text; each raises ValueError that says what was expected."""


def read(option: Option, text: str) -> Any:
    """The checked value of an option.

    Raises:
        ValueError: that says what was expected.
    """
    value = READERS[option.kind](text)
    if option.metadata["path"]:
        value = with_home(value)
    check(option, value)
    return value


def with_home(path: str) -> str:
    """A path in which ``~`` at the beginning is the home folder, and ``~name`` that of a user.

    Raises:
        ValueError: there is no such folder.
    """
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ValueError(f"no home folder is known for {path.split('/')[0]}; write ./~ for a name that begins with ~")
    return expanded


def check(option: Option, value: Any) -> None:
    """Raise ValueError for a value that the option does not allow."""
    metadata = option.metadata
    for entry in value if isinstance(value, tuple) else [value]:
        if metadata["choices"] and entry not in metadata["choices"]:
            raise ValueError(f"one of {', '.join(map(written, metadata['choices']))} expected")
        if entry == "auto":
            continue
        if metadata["minimum"] is not None and entry < metadata["minimum"]:
            raise ValueError(f"at least {metadata['minimum']:g} expected")
        if metadata["above"] is not None and entry <= metadata["above"]:
            raise ValueError(f"more than {metadata['above']:g} expected")
        if metadata["maximum"] is not None and entry > metadata["maximum"]:
            raise ValueError(f"at most {metadata['maximum']:g} expected")
