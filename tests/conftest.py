"""Which tests may run side by side (``pytest -n 2``, as in the Makefile)."""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

# These start runs of several processes and look at the clock, or make networks and clusters whose names are fixed:
# one after the other within each group. The tests of any other file share its fixtures.
_GROUPS = {"cluster": "clusters", "system": "commands", "launch": "commands"}


class _Groups(LoadScopeScheduling):
    """Tests of a group go to the same worker, the longest groups first."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return _GROUPS.get(file.split("/")[1], file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return _Groups(config, log)
