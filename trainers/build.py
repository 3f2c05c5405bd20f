"""From the name of a system to its method."""

from __future__ import annotations

from collections.abc import Callable

from trainers.cld import ScoreMatching
from trainers.method import Method
from util.config import Config
from util.distributed import Distributed

SYSTEMS: dict[str, Callable[[Config, Distributed], Method]] = {"cld": ScoreMatching}


def build_method(config: Config, distributed: Distributed) -> Method:
    """The method of ``--system``, its networks on this rank's device."""
    return SYSTEMS[config.run.system](config, distributed)
