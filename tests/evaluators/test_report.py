"""The page about runs: what it says, what it refuses, and that a browser shows it without complaint."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluators.report.__main__ import main
from evaluators.report.page import differences, result_rows
from evaluators.report.records import MOST_PICTURES, read_runs
from util.errors import EXIT_FINISHED, EXIT_USAGE
from util.run_file import with_start

STEPS = (10, 20, 30)


def write_run(folder: Path, learning_rate: float = 0.1, n_pictures: int = 3) -> Path:
    (folder / "samples").mkdir(parents=True)
    (folder / "config.txt").write_text(
        f'system = cld\ndataset = "<b>&amp;"\nworkdir = {folder}\nlearning_rate = {learning_rate}\n'
    )
    lines = [
        json.dumps({"step": step, "time": 1.0, "loss": 1 / step, "unbounded": float("nan")}) for step in range(1, 31)
    ]
    (folder / "metrics.jsonl").write_bytes("\n".join([*lines, '{"step": 31, "lo']).encode() + b"\xff\n")
    start = {"started": 1.7e9, "world_size": 2, "hosts": ["one"], "versions": {"torch": "2"}}
    killed = {"starts": with_start({}, **start, step=0), "step": 25, "updated": 1.7e9 + 60, "exit_reason": None}
    status = {
        "starts": with_start(killed, **{**start, "world_size": 3}, step=20),
        "state": "finished", "step": 30, "updated": 1.7e9 + 90, "exit_reason": "finished", "world_size": 3,
        "hosts": ["one"],
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(status))
    for step in STEPS:
        write_results(folder / "evaluations" / f"step_{step:08d}", step, {"fid": (100 / step, None)})
    write_results(folder / "final", 30, {"nelbo": (3.25, 0.0125)})
    for place in range(n_pictures):
        Image.fromarray(np.full((8, 8, 3), place, np.uint8)).save(folder / "samples" / f"samples_{place + 1:08d}.png")
    return folder


def write_results(folder: Path, step: int, values: dict[str, tuple[float, float | None]]) -> None:
    folder.mkdir(parents=True)
    entries = {
        name: {"value": value, "standard_error": error, "unit": "some unit", "n_samples": 50, "checkpoint_step": step}
        for name, (value, error) in values.items()
    }
    (folder / "results.json").write_text(json.dumps({"checkpoint": {"step": step, "digest": "d"}, "results": entries}))


def test_a_run_is_read_as_it_is(tmp_path: Path) -> None:
    (run,) = read_runs([write_run(tmp_path / "run")])
    assert run.scalars["loss"] == [(step, 1 / step) for step in range(1, 31)]
    assert [(result.name, result.step, result.value) for result in run.results] == [
        ("nelbo", 30, 3.25), *(("fid", step, 100 / step) for step in STEPS)
    ]  # fmt: skip
    assert [(start.step, start.last_step, start.lost, start.world_size, start.reason) for start in run.starts] == [
        (0, 25, 5, 2, "killed"), (20, 30, 0, 3, "finished")
    ]  # fmt: skip


def test_several_runs_stand_side_by_side(tmp_path: Path) -> None:
    first, second = write_run(tmp_path / "a" / "run"), write_run(tmp_path / "b" / "run", learning_rate=0.2)
    write_results(second / "other", 30, {"nll": (3.5, None)})
    runs = read_runs([first, second])
    assert runs[0].name != runs[1].name
    assert differences(runs) == {"learning_rate": ["0.1", "0.2"]}
    rows = {(row.evaluation, row.name): [cell and cell.value for cell in row.cells] for row in result_rows(runs)}
    assert rows == {
        ("final", "nelbo"): [3.25, 3.25],
        ("other", "nll"): [None, 3.5],
        ("during training", "fid"): [100 / 30, 100 / 30],
    }


def test_of_many_pictures_some_are_shown_with_first_and_last(tmp_path: Path) -> None:
    (run,) = read_runs([write_run(tmp_path / "run", n_pictures=3 * MOST_PICTURES)])
    steps = [picture.step for picture in run.pictures]
    assert len(steps) == len(set(steps)) == MOST_PICTURES
    assert (steps[0], steps[-1]) == (1, 3 * MOST_PICTURES)


def test_a_page_needs_nothing_beside_it(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert main([str(write_run(tmp_path / "run")), "-o", str(page)]) == EXIT_FINISHED
    text = page.read_text()
    addresses = re.findall(r'(?:src|href)="([^"]*)"', text) + re.findall(r"url\(([^)]*)\)", text)
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert "<b>&amp;" not in text
    assert "&lt;b&gt;" in text


REFUSED = {
    "no run": (lambda folder: [str(folder)], "holds no run"),
    "absent": (lambda folder: [str(folder / "absent")], "holds no run"),
    "twice": (lambda folder: [str(folder / "run"), str(folder / "x" / ".." / "run")], "given twice"),
    "no folder": (lambda folder: [str(folder / "run"), "-o", str(folder / "absent" / "page.html")], "-o "),
    "a folder": (lambda folder: [str(folder / "run"), "-o", str(folder)], "-o "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    words, message = REFUSED[case]
    assert main(words(tmp_path)) == EXIT_USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert sorted(tmp_path.rglob("*")) == before


def shown(page: Path, profile: Path) -> tuple[str, str]:
    """The document as a browser has it after its scripts, and what the browser said."""
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
        f"--user-data-dir={profile}", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_a_browser_moves_the_slider_without_complaint(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert main([str(write_run(tmp_path / "run")), "-o", str(page)]) == EXIT_FINISHED
    moved = """<script>
        const slider = document.querySelector(".strip input");
        slider.value = 0;
        slider.dispatchEvent(new Event("input"));
        const seen = [...document.querySelectorAll(".strip img")].filter(image => image.offsetParent !== null);
        document.body.dataset.seen = seen.map(image => image.dataset.step).join(" ");
        document.body.dataset.wide = document.documentElement.scrollWidth > window.innerWidth;
    </script>"""
    page.write_text(page.read_text().replace("</body>", moved + "</body>"))
    document, said = shown(page, tmp_path / "profile")
    assert 'data-seen="1"' in document
    assert 'data-wide="false"' in document
    assert "samples during training<output> at step 1</output>" in document
    assert "CONSOLE" not in said
    page.write_text(page.read_text().replace("</body>", "<script>absent()</script></body>"))
    assert "CONSOLE" in shown(page, tmp_path / "profile")[1]  # complaints would have been seen
