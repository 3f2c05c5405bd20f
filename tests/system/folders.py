"""Folders as they are on disk, to the last byte."""

from __future__ import annotations

import os
from pathlib import Path


def contents(folder: Path, besides: tuple[str, ...] = ("logs",)) -> dict[str, bytes | str]:
    """Every file, folder and link under ``folder`` by its path, links to folders followed; ``besides`` at the top."""
    found: dict[str, bytes | str] = {}
    for place, folders, files in os.walk(folder, followlinks=True):
        if Path(place) == folder:
            folders[:] = [name for name in folders if name not in besides]
        for name in (*folders, *files):
            path = Path(place, name)
            kind = f"link to {os.readlink(path)}" if path.is_symlink() else "folder"
            found[str(path.relative_to(folder))] = path.read_bytes() if path.is_file() else kind
    return found
