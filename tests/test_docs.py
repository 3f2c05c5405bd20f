"""What the documentation says of itself."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def prose(text: str) -> str:
    """The text without its code."""
    return re.sub(r"(`+).*?\1", "", re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.DOTALL | re.MULTILINE))


def places_left_open(text: str) -> list[str]:
    """Words in capitals joined by underscores, which stand where a figure should."""
    return re.findall(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b", prose(text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_figure_is_left_open(page):
    assert places_left_open(page.read_text()) == []


def test_what_a_place_left_open_looks_like():
    assert places_left_open("| `scoreflow_subvp` | SUBVP_BOUND | 4.25 |") == ["SUBVP_BOUND"]
    assert places_left_open("at most `MAX_REQUEUES` times\n```\nexport NODE_RANK=1\n```\nNELBO and FID of NCSN++") == []
