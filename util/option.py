"""How an option is declared: a field of a group, which ``util.config`` turns into a flag."""

from __future__ import annotations

import dataclasses
from typing import Any


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[Any, ...] | None = None,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    defines_run: bool | tuple[str, ...] = True,
    flags: tuple[str, ...] = (),
) -> Any:
    """A field of an option group.

    Args:
        default: the value when neither command line nor configuration files give one.
        help: one sentence for ``--help``, with the unit.
        choices: the only values allowed.
        minimum, above, maximum: bounds on a number; ``above`` is exclusive.
        defines_run: whether another value makes it another training run (see ``Config.difference``), or for which
            systems it does.
        flags: short forms.
    """
    metadata = {
        "help": help, "choices": choices, "minimum": minimum, "above": above, "maximum": maximum,
        "defines_run": defines_run, "flags": flags,
    }  # fmt: skip
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)
