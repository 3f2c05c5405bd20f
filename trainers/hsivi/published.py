"""Where the public code of HSIVI differs from ours (docs/differences.md), each difference by what it does."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Behaviour:
    """What the mathematics is asked to do; the defaults are right.

    Attributes:
        single_precision: variances of the schedule, see ``make_schedule``.
        teacher_labels: a teacher of finer steps is asked with its own labels.
        by_halves: which samples of a batch mirror each other, see ``mirror``.
        starts_from_averages: phi and f start from averaged weights.
        samples_from_averages: samples are drawn with averaged weights.
    """

    single_precision: bool = False
    teacher_labels: bool = True
    by_halves: bool = False
    starts_from_averages: bool = True
    samples_from_averages: bool = True


PUBLISHED = Behaviour(
    single_precision=True,
    teacher_labels=False,
    by_halves=True,
    starts_from_averages=False,
    samples_from_averages=False,
)


def behaviour(published_behaviour: bool) -> Behaviour:
    """What ``--published_behaviour`` chooses."""
    return PUBLISHED if published_behaviour else Behaviour()
