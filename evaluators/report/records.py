"""What the folder of a run says of it: settings, curves, results, pictures, and the starts it took."""

from __future__ import annotations

import contextlib
import json
import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluators.files import read_json
from evaluators.job import RESULTS
from util.config import RECORD
from util.config_file import read_settings
from util.errors import UsageError
from util.run_file import read_run_file

PERIODIC = "evaluations"
"""The folder in a run's folder for what is evaluated during training."""
MOST_PICTURES = 40
"""Of a kind: a page with all of a long run would be too large to send."""


@dataclass(frozen=True)
class Result:
    """One entry of a ``results.json``.

    Attributes:
        evaluation: its folder, relative to that of the run, without the step.
        name: of the metric.
        step: of the model.
        value, standard_error: None for an error that is not known.
        unit: of the value.
        n_samples: that it is over.
        nfe: network evaluations for a sample, where counted.
    """

    evaluation: str
    name: str
    step: int
    value: float
    standard_error: float | None
    unit: str
    n_samples: int | None
    nfe: float | None


@dataclass(frozen=True)
class Picture:
    """A PNG file. ``step`` is None for the only one of its kind."""

    kind: str
    step: int | None
    path: Path


@dataclass(frozen=True)
class Start:
    """One start of a run.

    Attributes:
        started: seconds since 1970.
        step: completed steps it began with.
        world_size, hosts, versions: what it ran on.
        ended: seconds since 1970 of the last sign of life.
        last_step: the last one that was reported.
        reason: why it ended; "running" while it may not have.
        lost: steps that the next start did again.
    """

    started: float
    step: int
    world_size: int
    hosts: Sequence[str]
    versions: dict[str, str]
    ended: float | None
    last_step: int
    reason: str
    lost: int


@dataclass(frozen=True)
class Run:
    """A run as its folder has it."""

    name: str
    folder: Path
    settings: dict[str, str]
    status: dict[str, Any]
    scalars: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    results: list[Result] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs of some folders, each with a name that no other has.

    Raises:
        UsageError: a folder holds no run, or is given twice.
    """
    resolved = [folder.resolve() for folder in folders]
    for folder in resolved:
        if resolved.count(folder) > 1:
            raise UsageError(f"{folder} is given twice; name each run once")
    names = [folder.name for folder in resolved]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in resolved]
    return [_read_run(folder, name) for folder, name in zip(resolved, names, strict=True)]


def _read_run(folder: Path, name: str) -> Run:
    if not (folder / RECORD).is_file():
        raise UsageError(f"{folder} holds no run: there is no {RECORD} in it; give the --workdir of one")
    settings = {key: setting.text for key, setting in read_settings(folder / RECORD).items()}
    status = read_run_file(folder)
    pictures = list(_thinned([*_sample_pictures(folder), *_evaluation_pictures(folder)]))
    return Run(
        name, folder, settings, status, _scalars(folder / "metrics.jsonl"), _results(folder), pictures, _starts(status)
    )


def _scalars(path: Path) -> dict[str, list[tuple[int, float]]]:
    """What was logged, by name. A line that a kill cut short, or that was damaged, is passed over."""
    found: dict[str, list[tuple[int, float]]] = {}
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                entry = json.loads(line)
                step = int(entry["step"])
                for name, value in entry.items():
                    if name not in ("step", "time") and isinstance(value, int | float):
                        found.setdefault(name, []).append((step, float(value)))
    return found


def _results(folder: Path) -> list[Result]:
    found = []
    for path in sorted([*folder.glob(f"*/{RESULTS}"), *folder.glob(f"*/step_*/{RESULTS}")]):
        content = read_json(path)
        if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
            continue
        evaluation = path.parent.relative_to(folder).parts[0]
        for name, entry in content["results"].items():
            if not isinstance(entry, dict) or not isinstance(entry.get("value"), int | float):
                continue
            error = entry.get("standard_error")
            found.append(
                Result(
                    evaluation, name, int(entry.get("checkpoint_step", 0)), float(entry["value"]),
                    float(error) if isinstance(error, int | float) and math.isfinite(error) else None,
                    str(entry.get("unit", "")), entry.get("n_samples"), entry.get("nfe"),
                )
            )  # fmt: skip
    return sorted(
        found, key=lambda result: (result.evaluation == PERIODIC, result.evaluation, result.name, result.step)
    )


def _sample_pictures(folder: Path) -> Iterator[Picture]:
    for path in sorted((folder / "samples").glob("*.png")):
        if named := re.fullmatch(r"(.+)_(\d+)", path.stem):
            yield Picture(f"{named[1]} during training", int(named[2]), path)


def _evaluation_pictures(folder: Path) -> Iterator[Picture]:
    for path in sorted(folder.glob("*/*.png")):
        if path.parent.name not in ("samples", PERIODIC):
            yield Picture(f"{path.parent.name}: {path.stem}", None, path)
    for path in sorted(folder.glob("*/step_*/*.png")):
        step = path.parent.name.removeprefix("step_")
        if path.parts[-3] != PERIODIC and step.isdigit():  # those of PERIODIC are in samples/ too
            yield Picture(f"{path.parts[-3]}: {path.stem}", int(step), path)


def _thinned(pictures: Sequence[Picture]) -> Iterator[Picture]:
    """At most ``MOST_PICTURES`` of a kind, evenly chosen, with the first and the last."""
    for kind in dict.fromkeys(picture.kind for picture in pictures):
        of_kind = sorted((picture for picture in pictures if picture.kind == kind), key=lambda one: one.step or 0)
        n_kept = min(len(of_kind), MOST_PICTURES)
        places = [round(place * (len(of_kind) - 1) / max(n_kept - 1, 1)) for place in range(n_kept)]
        yield from (of_kind[place] for place in places)


def _starts(status: dict[str, Any]) -> list[Start]:
    entries = status.get("starts", [])
    found = []
    for place, entry in enumerate(entries):
        is_last = place == len(entries) - 1
        end = status if is_last else entry
        last_step = int((end.get("step") if is_last else end.get("last_step")) or entry["step"])
        lost = 0 if is_last else max(0, last_step - int(entries[place + 1]["step"]))
        reason = end.get("exit_reason") or ("running" if is_last else "killed")
        found.append(
            Start(
                entry["started"], entry["step"], entry["world_size"], entry["hosts"], entry.get("versions", {}),
                end.get("updated") if is_last else end.get("ended"), last_step, str(reason), lost,
            )
        )  # fmt: skip
    return found


def clock(seconds: float | None) -> str:
    """A moment, for people; empty for none."""
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
