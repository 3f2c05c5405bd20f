"""Where the public code of HSIVI differs from ours (docs/differences.md), each difference by what it does."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Behaviour:
    """What the mathematics is asked to do; the defaults are right."""

    single_precision: bool = False
    """Variances of the schedule, see ``make_schedule``."""
    teacher_labels: bool = True
    """A teacher of finer steps is asked with its own labels."""
    by_halves: bool = False
    """Which samples of a batch mirror each other, see ``mirror``."""
    starts_from_averages: bool = True
    """Phi and f start from averaged weights."""
    samples_from_averages: bool = True
    """Samples are drawn with averaged weights."""


PUBLISHED = Behaviour(
    single_precision=True, teacher_labels=False, by_halves=True, starts_from_averages=False,
    samples_from_averages=False,
)  # fmt: skip


def behaviour(published_behaviour: bool) -> Behaviour:
    """What ``--published_behaviour`` chooses."""
    return PUBLISHED if published_behaviour else Behaviour()
