"""Dependencies point one way: main -> launch; main -> trainers, evaluators -> diffusion, models -> util.

A ``__main__.py`` is a main of its own, which starts ranks as main.py does.
"""

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "util": set(),
    "diffusion": {"util"},
    "models": {"util"},
    "trainers": {"diffusion", "models", "util"},
    "evaluators": {"diffusion", "models", "util"},
    "launch": {"util"},
}
OURS = {*MAY_IMPORT, "main"}
WINGS = ("continuous", "discrete", "log_snr")
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
        starts = {"launch"} if path.name == "__main__.py" else set()
        assert used <= MAY_IMPORT[package] | {package} | starts, f"{path} imports {used}"


def test_wings_of_the_mathematics_do_not_know_each_other() -> None:
    for path in (ROOT / "diffusion").rglob("*.py"):
        inside = path.relative_to(ROOT / "diffusion").parts
        allowed = {inside[0]} if len(inside) > 1 else set()
        used = {name.split(".")[1] for name in imports(path) if name.startswith("diffusion.")} & set(WINGS)
        assert used <= allowed, f"{path} imports {used}"


def test_systems_do_not_know_each_other() -> None:
    rooms = {path.parent.name for path in (ROOT / "trainers").glob("*/__init__.py")}
    for room in rooms:
        for path in (ROOT / "trainers" / room).glob("*.py"):
            used = {name.split(".")[1] for name in imports(path) if name.startswith("trainers.")} & rooms
            assert used <= {room}, f"{path} imports {used}"


@pytest.mark.parametrize("package", ["diffusion", "models"])
def test_mathematics_knows_no_ranks_no_files_no_flags(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        assert not imports(path) & WITHOUT_RANKS_OR_FILES, path
        texts = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
        flags = [text for text in texts if isinstance(text, str) and text.startswith("--")]
        assert not flags, f"{path} names {flags}"
        assert "published_behaviour" not in path.read_text(), path


def test_public_names_of_the_mathematics_are_unique() -> None:
    names = Counter(
        node.name
        for path in (ROOT / "diffusion").rglob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_main_can_be_read_in_one_screen() -> None:
    assert len((ROOT / "main.py").read_text().splitlines()) <= 50
