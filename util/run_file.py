"""``run.json``: what a person or a scheduler wants to know of a run, in one small file."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

from util.files import write_json


def read_run_file(workdir: Path) -> dict[str, Any]:
    """The fields of ``<workdir>/run.json``; empty where there is none."""
    with contextlib.suppress(OSError, ValueError):
        content = json.loads((workdir / "run.json").read_text())
        if isinstance(content, dict):
            return content
    return {}


def update_run_file(workdir: Path, **fields: Any) -> None:
    """Set fields of ``<workdir>/run.json``, keeping the others; atomic."""
    write_json(workdir / "run.json", {**read_run_file(workdir), **fields, "updated": time.time()})
