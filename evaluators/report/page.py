"""From runs to the text of a page that needs nothing beside itself."""

from __future__ import annotations

import base64
import io
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
from PIL import Image

from evaluators.report.curves import COLORS, Curve, draw
from evaluators.report.records import PERIODIC, Picture, Result, Run, clock
from util.config import RECORD

_TEMPLATES = Path(__file__).parent
_FIRST = ("loss", "evaluation/loss")
PLACES = ("root", "workdir")
"""Settings that say where a run stands, not what it is."""


@dataclass(frozen=True)
class Row:
    """Results of one metric, by the name of the run; None where a run has none."""

    evaluation: str
    name: str
    unit: str
    cells: Sequence[Result | None]


@dataclass(frozen=True)
class Strip:
    """Pictures of one kind of one run, as ``data:`` addresses."""

    run: str
    kind: str
    pictures: Sequence[tuple[int | None, str]]


def make_page(runs: Sequence[Run]) -> str:
    """The HTML text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"clock": clock, "figure": _figure}
    colors = {run.name: COLORS[place % len(COLORS)] for place, run in enumerate(runs)}
    return environment.get_template("page.html").render(
        runs=runs,
        colors=colors,
        title=" / ".join(run.name for run in runs),
        made=clock(time.time()),
        rows=list(result_rows(runs)),
        curves=list(_curves(runs, colors)),
        differences=differences(runs),
        strips=[strip for run in runs for strip in _strips(run)],
        commands={run.name: _command(run) for run in runs},
        files={run.name: _address((run.folder / RECORD).read_bytes(), "text/plain") for run in runs},
    )


def result_rows(runs: Sequence[Run]) -> Iterator[Row]:
    """A row for each metric of each evaluation; of those during training, and of a followed run, the last."""
    found: dict[tuple[str, str, str], dict[str, Result]] = {}
    for run in runs:
        for result in run.results:
            cells = found.setdefault((result.evaluation, result.name, result.unit), {})
            if run.name not in cells or cells[run.name].step <= result.step:
                cells[run.name] = result
    for (evaluation, name, unit), cells in found.items():
        where = "during training" if evaluation == PERIODIC else evaluation
        yield Row(where, name, unit, [cells.get(run.name) for run in runs])


def differences(runs: Sequence[Run]) -> dict[str, list[str | None]]:
    """Settings that the runs do not share, each with its value in every run; None where a run does not read it."""
    keys = dict.fromkeys(key for run in runs for key in run.settings if key not in PLACES)
    values = {key: [run.settings.get(key) for run in runs] for key in keys}
    return {key: of_runs for key, of_runs in values.items() if len(set(of_runs)) > 1}


def _curves(runs: Sequence[Run], colors: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Title and drawing of all that changes over steps: what was logged, then results with their errors."""
    drawn: dict[tuple[str, str], dict[str, Curve]] = {}
    evaluated = set()
    for run in runs:
        for result in run.results:
            of_metric = [
                other for other in run.results
                if (other.evaluation, other.name, other.unit) == (result.evaluation, result.name, result.unit)
            ]  # fmt: skip
            if len(of_metric) < 2:
                continue
            where = "" if result.evaluation == PERIODIC else f" ({result.evaluation})"
            evaluated.add(f"evaluation/{result.name}")
            drawn.setdefault((f"{result.name}{where}", result.unit), {})[run.name] = Curve(
                np.array([other.step for other in of_metric]),
                np.array([other.value for other in of_metric]),
                np.array([other.standard_error or 0.0 for other in of_metric]),
            )
    logged: dict[tuple[str, str], dict[str, Curve]] = {}
    for name in sorted({name for run in runs for name in run.scalars}, key=lambda name: (name not in _FIRST, name)):
        if name in evaluated:
            continue
        for run in runs:
            if name in run.scalars:
                steps, values = np.array(run.scalars[name]).T
                logged.setdefault((name, ""), {})[run.name] = Curve(steps, values)
    for number, ((name, unit), curves) in enumerate((logged | drawn).items()):
        title = name.replace("_gib", " (GiB)").replace("_", " ")
        if (name, unit) in drawn:
            title += ", evaluated"
        yield title, draw(curves, unit or title, colors, number)


def _strips(run: Run) -> Iterator[Strip]:
    for kind in dict.fromkeys(picture.kind for picture in run.pictures):
        of_kind = [picture for picture in run.pictures if picture.kind == kind]
        yield Strip(run.name, kind, [(picture.step, _embedded(picture)) for picture in of_kind])


def _embedded(picture: Picture) -> str:
    """Compressed as far as goes, so that a page with many stays small enough to send."""
    with Image.open(picture.path) as image:
        file = io.BytesIO()
        image.save(file, "PNG", optimize=True)
    return _address(file.getvalue(), "image/png")


def _address(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _command(run: Run) -> str:
    world_size = run.status.get("world_size", 1)
    words = ["python", "main.py", "-cc", RECORD, "--workdir", f"work_dir/{run.folder.name}_again"]
    if world_size and world_size > 1:
        words += ["--n_gpus_per_node", str(world_size)]
    return shlex.join(words)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"
