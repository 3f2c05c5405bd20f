"""Reads the recorded numbers that independent implementations of the published systems produced."""

import os
from pathlib import Path

import numpy as np


def _path(system: str, name: str) -> Path:
    folder = os.environ.get("GOLDEN_DIR") or Path(__file__).parent / "vectors"
    return Path(folder) / system / f"{name}.npz"


def exists(system: str, name: str) -> bool:
    """Whether there is a file of this name (without ``.npz``) for the system."""
    return _path(system, name).is_file()


def load(system: str, name: str) -> dict[str, np.ndarray]:
    """Every array of one file (``name`` without ``.npz``), by key."""
    with np.load(_path(system, name), allow_pickle=False) as file:
        return {key: file[key] for key in file.files}
