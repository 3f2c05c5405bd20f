"""Where the public code of i-DODE differs from ours (docs/differences.md), each difference by what it does."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Behaviour:
    """What the mathematics is asked to do; the defaults are right."""

    divisions_by_alpha: int = 1
    """Of z_0 in the decoder, see ``reconstruction_term`` and ``decode``."""
    within_range: bool = True
    """Where uniform dequantization starts, see ``dequantize_uniformly``."""
    of_the_sum: bool = False
    """Importance weights are added, see ``importance_weighted_terms``."""


PUBLISHED = Behaviour(divisions_by_alpha=2, within_range=False, of_the_sum=True)


def behaviour(published_behaviour: bool) -> Behaviour:
    """What ``--published_behaviour`` chooses."""
    return PUBLISHED if published_behaviour else Behaviour()
