"""What ``--system`` names: its options, and what makes a method of them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


def load(place: str) -> Any:
    """What stands at ``package.module:NAME``. Modules that need torch are loaded only when they are used: the agent
    that starts ranks does without.

    Raises:
        ImportError, AttributeError: there is no such module, or no such name in it.
    """
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


@dataclass(frozen=True)
class System:
    """One published system, or one of your own (docs/extending.md). Functions are named by ``package.module:NAME``.

    Attributes:
        summary: one line for ``--help``.
        options: dataclasses of its options (``util.option``).
        networks: by ``--name``, the dataclasses of its networks' options; the first is the default.
        check: (config), raises UsageError for options that contradict each other, before any work.
        build: (config, distributed) to the ``trainers.method.Method``, its networks on this rank's device.
        learns_from_data: whether training reads the data set; else it is opened for evaluations that need it only.
        has_likelihood: whether there is a likelihood to evaluate.
        has_dequantizer: whether ``--mode train_deq`` trains one.
        settle: (config, hold) to a configuration, a text and fields of run.json: chooses, on one rank and before
            ``build``, the snapshots that are needed beside the model's, has an evaluation ``hold`` them
            (``util.pinned.Hold``), and says what of them tells evaluations apart, and what a run in training
            remembers; empty for none.
        importers: by the name of the program, (paths) to the state of a snapshot of its files, which raises UsageError
            for anything missing, left over, of another shape, or not finite.
    """

    summary: str
    options: Sequence[type]
    networks: Mapping[str, type]
    check: str
    build: str
    learns_from_data: bool = True
    has_likelihood: bool = True
    has_dequantizer: bool = False
    settle: str = ""
    importers: Mapping[str, str] = field(default_factory=dict)
