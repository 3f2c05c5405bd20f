"""What has to be the same on every node: the configuration, and the code that reads it."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGES = ("launch", "trainers", "evaluators", "diffusion", "models", "util")
OF_ONE_NODE = {
    "node_rank", "n_nodes", "n_gpus_per_node", "master_address", "master_port", "root", "data_location", "n_workers",
}  # fmt: skip
"""Options that may differ between nodes, or that are compared in another way."""
LONGEST_VALUE = 200


def fingerprint(settings: Mapping[str, Any]) -> dict[str, str]:
    """Everything that two nodes of one run have in common, by name, each value in a short written form.

    Args:
        settings: the value of every option by its flag.
    """
    options = {name: value for name, value in settings.items() if name not in OF_ONE_NODE}
    return {f"--{name}": _short(value) for name, value in options.items()} | code_versions()


def code_versions() -> dict[str, str]:
    """Versions of Python, torch and Scorefleet's own source files, which a release number alone does not tell apart."""
    digest = hashlib.sha256()
    files = [ROOT / "main.py", *(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))]
    for path in sorted(files):
        digest.update(f"{path.relative_to(ROOT)}\n".encode())
        digest.update(path.read_bytes())
    return {
        "Scorefleet's source files": digest.hexdigest()[:12],
        "Python": ".".join(platform.python_version_tuple()[:2]),
        "torch": metadata.version("torch").split("+")[0],
    }


def difference(first: dict[str, str], first_place: str, second: dict[str, str], second_place: str) -> str:
    """The first few values that differ, with both places named; empty when there are none."""
    names = [name for name in {**first, **second} if first.get(name) != second.get(name)]
    shown = [
        f"{name} is {first.get(name, '(none)')} on {first_place} and {second.get(name, '(none)')} on {second_place}"
        for name in names[:3]
    ]
    more = [f"and {len(names) - 3} more"] if len(names) > 3 else []
    return "; ".join(shown + more)


def _short(value: Any) -> str:
    text = str(value)
    if len(text) <= LONGEST_VALUE:
        return text
    return text[:LONGEST_VALUE] + "... " + hashlib.sha256(text.encode()).hexdigest()[:12]
