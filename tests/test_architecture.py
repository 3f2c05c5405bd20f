"""Dependencies point one way: main -> launch -> trainers, evaluators -> diffusion, models -> util."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "util": set(),
    "diffusion": {"util"},
    "models": {"util"},
    "trainers": {"diffusion", "models", "util"},
    "evaluators": {"diffusion", "models", "util"},
    "launch": {"util", "main"},
}
OURS = {*MAY_IMPORT, "main"}
WITHOUT_RANKS_OR_FILES = {"torch.distributed", "util.distributed", "util.config", "util.run_options", "pathlib", "os"}


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_direction_of_imports(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        used = {name.split(".")[0] for name in imports(path)} & OURS
        assert used <= MAY_IMPORT[package] | {package}, f"{path} imports {used}"


@pytest.mark.parametrize("package", ["diffusion", "models"])
def test_mathematics_knows_no_ranks_no_files_no_options(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        assert not imports(path) & WITHOUT_RANKS_OR_FILES, path


def test_main_can_be_read_in_one_screen() -> None:
    assert len((ROOT / "main.py").read_text().splitlines()) <= 50
