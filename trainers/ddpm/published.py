"""Where the public code differs from ours (docs/differences.md), by what it does."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Behaviour:
    """What the mathematics is asked to do; the defaults are right."""

    single_precision: bool = False
    """Variances of the schedule, see ``make_schedule``."""


PUBLISHED = Behaviour(single_precision=True)


def behaviour(published_behaviour: bool) -> Behaviour:
    """What ``--published_behaviour`` chooses."""
    return PUBLISHED if published_behaviour else Behaviour()
