"""Configuration files: ``key = value`` lines, the first of which may include another file."""

from __future__ import annotations

import codecs
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from util.errors import UsageError

INCLUDE = "include"


@dataclass(frozen=True)
class Setting:
    """The text of a value, and where it stands."""

    text: str
    where: str


def read_settings(path: Path, including: tuple[Path, ...] = ()) -> dict[str, Setting]:
    """The settings of a file by their keys; its own win over those of the file that it includes.

    ``#`` and ``;`` after a blank begin a comment, unless in a value in quotes; ``[sections]`` are passed over.

    Args:
        path: the file. What it includes is looked for beside it.
        including: the files that led to this one.

    Raises:
        UsageError: an unreadable file, a line that is no setting, a key that is set twice, files that include each
            other.
    """
    try:
        content = path.read_bytes()
        # Redirected output of PowerShell is UTF-16, and says so with a byte-order mark.
        utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        lines = content.decode("utf-16" if utf_16 else "utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not a text file; give a file of 'key = value' lines") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); the published settings are in configs/") from None
    included: dict[str, Setting] = {}
    own: dict[str, Setting] = {}
    numbers: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        where = f"{path} line {number}"
        key, value = parse_line(line, where)
        if not key:
            continue
        if key in own:
            raise UsageError(f"{where}: '{key}' was set in line {numbers[key]} already; keep one of the two")
        if key == INCLUDE:
            included |= _include(path, Path(os.path.expanduser(value)), where, (*including, path.resolve()), bool(own))
        else:
            own[key], numbers[key] = Setting(value, where), number
    return {**included, **own}


def _include(path: Path, name: Path, where: str, including: tuple[Path, ...], late: bool) -> dict[str, Setting]:
    target = path.parent / name
    if late:
        raise UsageError(f"{where}: a file includes another in its first setting; move the line up")
    if not os.path.isfile(target):
        raise UsageError(f"{where}: include = {name}: there is no such file beside {path.name}")
    if target.resolve() in including:
        raise UsageError(f"{where}: include = {name}: that file includes this one; leave one of the two lines out")
    return read_settings(target, including)


def parse_line(line: str, where: str) -> tuple[str, str]:
    """Key and value of a line, both empty for a line that says nothing.

    Raises:
        UsageError: it is no setting; ``where`` says which line it is.
    """
    line = line.strip()
    if not line or line[0] in "#;" or re.fullmatch(r"\[[^=]*\]", line):
        return "", ""
    key, separator, rest = (part.strip() for part in line.partition("="))
    if not separator or not key:
        raise UsageError(f"{where}: '{line}' is not a setting; write 'key = value'")
    if rest[:1] not in ("'", '"'):
        return key, re.split(r"(?:^|\s)[#;]", rest, maxsplit=1)[0].strip()
    quoted = re.match(r"""("(?:[^"\\]|\\.)*"|'[^']*')\s*(?:[#;].*)?$""", rest)
    if quoted is None:
        raise UsageError(f'{where}: {key} = {rest}: the quotes do not close after the value; write \\" for one inside')
    if rest[0] == "'":
        return key, quoted[1][1:-1]
    try:
        return key, json.loads(quoted[1])
    except json.JSONDecodeError:
        # Not as we write it, but as people write a Windows path.
        return key, quoted[1][1:-1]
