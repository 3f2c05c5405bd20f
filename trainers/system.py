"""What ``--system`` names: its options, and what makes a method of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from util.config import Config

if TYPE_CHECKING:  # torch takes seconds to import, and the agent does not need it
    from trainers.method import Method
    from util.distributed import Distributed

Importer = Callable[[Sequence[Path]], "dict[str, Any]"]


def nothing_beside(config: Config) -> tuple[Config, str]:
    """What a system settles that reads no snapshot but the model's."""
    return config, ""


@dataclass(frozen=True)
class System:
    """One published system, or one of your own (docs/extending.md).

    Attributes:
        summary: one line for ``--help``.
        options: dataclasses of its options (``util.option``).
        networks: by ``--name``, the dataclasses of its networks' options; the first is the default.
        check: raises UsageError for options that contradict each other, before any work.
        build: the method, its networks on this rank's device.
        learns_from_data: whether training reads the data set; else it is opened for evaluations that need it only.
        has_likelihood: whether there is a likelihood to evaluate.
        settle: chooses, on one rank and before ``build``, the snapshots that the options leave open beside the model's;
            returns the configuration that names them, and what of them tells evaluations apart.
        importers: by the name of the program, what makes the state of a snapshot of its files.
    """

    summary: str
    options: Sequence[type]
    networks: Mapping[str, type]
    check: Callable[[Config], None]
    build: Callable[[Config, Distributed], Method]
    learns_from_data: bool = True
    has_likelihood: bool = True
    settle: Callable[[Config], tuple[Config, str]] = nothing_beside
    importers: Mapping[str, Importer] = field(default_factory=dict)
