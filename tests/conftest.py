"""Which tests may run side by side (``pytest -n 2``, as in the Makefile)."""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

# These start runs of several processes and look at the clock, or make networks and clusters whose names are fixed:
# one after the other. The tests of any other file share its fixtures.
_COMMANDS = ("cluster", "system", "launch")


class _Groups(LoadScopeScheduling):
    """Tests that start commands go to one worker, those of any other file to the same one."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return "commands" if file.split("/")[1] in _COMMANDS else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return _Groups(config, log)
