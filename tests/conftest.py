"""Which tests may run side by side (``pytest -n 2 --dist loadgroup``, as in the Makefile)."""

from __future__ import annotations

from pathlib import Path

import pytest

_TESTS = Path(__file__).parent
# These start runs of several processes and look at the clock, or make networks and clusters whose names are fixed:
# one after the other within each group. The tests of any other file share its fixtures.
_GROUPS = {"cluster": "clusters", "system": "commands", "launch": "commands"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        place = item.path.relative_to(_TESTS)
        item.add_marker(pytest.mark.xdist_group(_GROUPS.get(place.parts[0], str(place))))
