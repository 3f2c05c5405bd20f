"""``run.json``: what a person or a scheduler wants to know of a run, in one small file."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
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


def with_start(before: Mapping[str, Any], **start: Any) -> list[dict[str, Any]]:
    """The field ``starts`` of a run that is started once more: what the run went through.

    Args:
        before: the fields of ``run.json`` that earlier starts left; empty for a fresh run.
        start: what there is to say of this one. Its end is in the fields beside ``starts``, until the next one.
    """
    earlier = list(before.get("starts", []))
    if earlier:
        ended = {"last_step": before.get("step"), "ended": before.get("updated")}
        earlier[-1] = {**earlier[-1], **ended, "exit_reason": before.get("exit_reason") or "killed"}
    return [*earlier, start]
