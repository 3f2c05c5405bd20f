"""Which tests may run side by side (``pytest -n 3``, as in the Makefile), and in what order."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

# Under nohup it is ignored, here and in what tests start, and tests of closed terminals would wait for ever.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The tests of a file share its fixtures, and those of these files a Slurm cluster.
_ON_SLURM = ("tests/cluster/test_slurm.py", "tests/cluster/test_submit.py")
# Mostly wait: begun first, they run beside the tests that compute. The longest come first.
_FIRST = ("cluster", "system", "launch")


class _Groups(LoadScopeScheduling):
    """Tests of one group go to one worker."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return "slurm" if file in _ON_SLURM else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    config.option.loadscopereorder = False
    return _Groups(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        folder = item.path.parent.name
        return _FIRST.index(folder) if folder in _FIRST else len(_FIRST)

    items.sort(key=place)
