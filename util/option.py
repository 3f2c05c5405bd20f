"""How an option is declared: a field of a dataclass, which ``util.command_line`` turns into a flag."""

from __future__ import annotations

import dataclasses
from enum import Enum
from functools import partial
from typing import Any


class Effect(Enum):
    """What another value of an option means."""

    RUN = "defines the run"
    """It is another training run; an evaluation takes the value from the snapshot."""
    VALUE = "changes a value of an evaluation"
    """Results of another value are not taken up again."""
    PLACE = "names a place or a speed"
    """Nothing that is computed changes."""


RUN, VALUE, PLACE = Effect.RUN, Effect.VALUE, Effect.PLACE


def option(
    default: Any,
    help: str,
    *,
    effect: Effect = RUN,
    choices: tuple[Any, ...] | None = None,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    flag: str = "",
    path: bool = False,
    alone: Any = None,
    once: bool = False,
    only_trains: bool = False,
    evaluated_anew: bool = False,
) -> Any:
    """A field of a group of options.

    Args:
        default: the value when neither command line nor configuration files give one.
        help: one sentence for ``--help``, with the unit.
        effect: what another value means.
        choices: the only values allowed.
        minimum, above, maximum: bounds on a number; ``above`` is exclusive.
        flag: its name on the command line and in files; the field's own where it is empty.
        path: of a file or folder, in which ``~`` is the home folder.
        alone: what the flag means without a value; None where it needs one. That of a bool is True.
        once: it counts for the command that gives it, and is not kept with the run.
        only_trains: it defines the run, but not what comes out of an evaluation of its model.
        evaluated_anew: it defines the run, and an evaluation may ask for another value than the run's.
    """
    metadata = {
        "help": help, "effect": effect, "choices": choices, "minimum": minimum, "above": above, "maximum": maximum,
        "flag": flag, "path": path, "alone": alone, "once": once, "only_trains": only_trains,
        "evaluated_anew": evaluated_anew,
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=metadata)


training_option = partial(option, only_trains=True)
"""An option that defines how a model is trained, and not what it is."""


@dataclasses.dataclass(frozen=True)
class Option:
    """An option as it was declared.

    Attributes:
        flag: its name on the command line and in files.
        field: its name in the dataclass.
        kind: type of its values.
        default: value.
        declared_in: the dataclass whose field it is.
        metadata: the other arguments of ``option``.
    """

    flag: str
    field: str
    kind: Any
    default: Any
    declared_in: type
    metadata: Any

    @property
    def effect(self) -> Effect:
        return self.metadata["effect"]

    @property
    def comes_from_snapshot(self) -> bool:
        """Whether an evaluation takes its value from the snapshot, and refuses another."""
        marks = self.metadata
        return self.effect is RUN and not marks["only_trains"] and not marks["evaluated_anew"]

    @property
    def changes_values(self) -> bool:
        """Whether results of an evaluation with another value are other results."""
        return self.effect is VALUE or (self.effect is RUN and not self.metadata["only_trains"])
