"""Results on disk: arrays written whole or not at all, and reading what may be damaged."""

import json
import logging
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from util.files import replacing

logger = logging.getLogger(__name__)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an uncompressed ``.npz`` whose bytes depend on the arrays alone: entries carry no time stamp.

    Raises:
        OSError: the disk is full, or the folder cannot be written to; ``path`` is as it was.
    """
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            with archive.open(entry, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """All arrays of an ``.npz`` file; None when absent, truncated or altered (entries carry a CRC-32)."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        logger.warning("%s cannot be read and is not used: %s", path, error)
        return None


def read_json(path: Path) -> Any:
    """The contents of a JSON file; None when it is absent or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        logger.warning("%s cannot be read and is not used: %s", path, error)
        return None
