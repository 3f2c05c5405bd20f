"""What the documentation says of itself, and that what it names is there: files, folders, modules, flags, links."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from main import OPTIONS
from tests.test_architecture import OURS
from trainers.systems import SYSTEMS

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("**/*.md"))]
FOLDERS = ("configs", "docs", "docker", "slurm", "tests", "benchmarks", *OURS)
OF_THE_PUBLIC_CODE = ("configs/default_", "configs/specific_", "--lmdb_path", "--tfr_path")
HAVE_FLAGS_OF_THEIR_OWN = ("util/command_line.py", "launch/__main__.py", "benchmarks/*.py")
ON_EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def missing(pattern: str, text: str, is_there: Callable[[str], bool]) -> list[str]:
    """What a text names, in the first group of ``pattern``, and what is not there."""
    named = {found for found in re.findall(pattern, text) if not found.startswith(OF_THE_PUBLIC_CODE)}
    return sorted(name for name in named if not is_there(name))


def prose(text: str) -> str:
    """The text without its code."""
    return re.sub(r"(`+).*?\1", "", re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.DOTALL | re.MULTILINE))


def places_left_open(text: str) -> list[str]:
    """Words in capitals joined by underscores, which stand where a figure should."""
    return re.findall(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b", prose(text))


@ON_EVERY_PAGE
def test_no_figure_is_left_open(page):
    assert places_left_open(page.read_text()) == []


def test_what_a_place_left_open_looks_like():
    assert places_left_open("| `scoreflow_subvp` | SUBVP_BOUND | 4.25 |") == ["SUBVP_BOUND"]
    assert places_left_open("at most `MAX_REQUEUES` times\n```\nexport NODE_RANK=1\n```\nNELBO and FID of NCSN++") == []


@ON_EVERY_PAGE
def test_files_that_a_page_names_exist(page):
    start = "|".join(FOLDERS)
    files = rf"\b((?:{start})/[\w./]*\w\.(?:py|txt|md|sbatch|yaml))\b"
    assert missing(files, page.read_text(), lambda name: (ROOT / name).is_file()) == []
    assert missing(rf"`((?:{start})/(?:[\w.]+/)*)`", page.read_text(), lambda name: (ROOT / name).is_dir()) == []


@ON_EVERY_PAGE
def test_settings_that_a_page_names_exist(page):
    names = rf"`((?:smoke|{'|'.join(SYSTEMS)})/\w+)`"
    assert missing(names, page.read_text(), lambda name: (ROOT / "configs" / f"{name}.txt").is_file()) == []


@ON_EVERY_PAGE
def test_links_lead_somewhere(page):
    links = r"\]\(((?!https?:)[^)#\s]+)"
    assert missing(links, prose(page.read_text()), lambda link: (page.parent / link).exists()) == []


@ON_EVERY_PAGE
def test_modules_that_a_page_runs_exist(page):
    def exists(name: str) -> bool:
        place = ROOT.joinpath(*name.split("."))
        return place.with_suffix(".py").is_file() or (place / "__main__.py").is_file()

    assert missing(rf"python -m ((?:{'|'.join(FOLDERS)})\b[\w.]*)", page.read_text(), exists) == []


@ON_EVERY_PAGE
def test_flags_that_a_page_names_exist(page):
    """Ours have underscores; those of other programs have none."""
    known = {f"--{flag}" for system in SYSTEMS for flag in OPTIONS.every(system)}
    for pattern in HAVE_FLAGS_OF_THEIR_OWN:
        known |= {flag for file in ROOT.glob(pattern) for flag in re.findall(r'"(--\w+)"', file.read_text())}
    assert missing(r"(--[a-z]+(?:_[a-z]+)+)\b", page.read_text(), known.__contains__) == []


def test_names_stand_in_the_files_that_the_map_gives_for_them():
    page = (ROOT / "docs" / "architecture.md").read_text()
    pairs = re.findall(r"`([\w/]+\.py)`, `(\w+)`", page)
    assert len(pairs) > 20
    assert [pair for pair in pairs if not re.search(rf"\b{pair[1]}\b", (ROOT / pair[0]).read_text())] == []


def test_hooks_before_a_commit_are_the_linters():
    hooks = re.findall(r"entry: \.venv/bin/(.*)", (ROOT / ".pre-commit-config.yaml").read_text())
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert re.findall(r"\$\(BIN\)/(.*)", recipe[1]) == hooks
