"""The recorded files hold what their list says: names in order, types, shapes."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.golden.vectors import load

FOLDER = Path(os.environ.get("GOLDEN_DIR") or Path(__file__).parent / "vectors") / "hsivi"


def sections() -> dict[str, list[tuple[str, str, tuple[int, ...]]]]:
    """By file, the name, type and shape of every array."""
    found: dict[str, list[tuple[str, str, tuple[int, ...]]]] = {}
    for line in (FOLDER / "MANIFEST.txt").read_text().splitlines():
        if heading := re.match(r"== (\w+)\.npz \((\d+) arrays\)", line):
            listed = found.setdefault(heading[1], [])
        elif line.count("\t") == 2:
            name, kind, shape = line.split("\t")
            listed.append((name, kind, tuple(int(size) for size in re.findall(r"\d+", shape))))
    return found


@pytest.mark.skipif(not (FOLDER / "MANIFEST.txt").is_file(), reason="these files come without a list")
def test_every_file_holds_what_is_listed():
    listed = sections()
    assert {path.stem for path in FOLDER.glob("*.npz")} == set(listed)
    for name, entries in listed.items():
        arrays = load("hsivi", name)
        assert [(key, str(value.dtype), value.shape) for key, value in arrays.items()] == entries
