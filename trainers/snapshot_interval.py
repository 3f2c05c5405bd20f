"""How often to write a snapshot, from what one costs and how often runs die.

Young, "A first order approximation to the optimum checkpoint interval", CACM 1974; Daly, "A higher order estimate of
the optimum checkpoint interval for restart dumps", FGCS 2006.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass

logger = logging.getLogger(__name__)

SMALLEST_COST_SECONDS = 0.01


def best_interval(cost_seconds: float, mtbf_seconds: float) -> float:
    """Seconds of work between snapshots that lose least, by Daly's estimate (Eq. 37), Young's in first order.

    Args:
        cost_seconds: how long one snapshot holds up the training.
        mtbf_seconds: mean time between failures of the whole run.
    """
    if cost_seconds >= 2 * mtbf_seconds:
        return mtbf_seconds
    ratio = math.sqrt(cost_seconds / (2 * mtbf_seconds))
    return math.sqrt(2 * cost_seconds * mtbf_seconds) * (1 + ratio / 3 + ratio**2 / 9) - cost_seconds


def expected_overhead(interval_seconds: float, cost_seconds: float, mtbf_seconds: float) -> float:
    """Fraction of the time lost to writing snapshots and to work done again, in first order."""
    return cost_seconds / interval_seconds + (interval_seconds + cost_seconds) / (2 * mtbf_seconds)


@dataclass
class SnapshotInterval:
    """Decides when the next snapshot is due; used on rank 0.

    The first one is written as soon as it can be: its cost is what the interval follows from.

    Attributes:
        mtbf_seconds: expected by the user.
        cost_seconds: the largest measured, to within a fifth; 0 before the first.
    """

    mtbf_seconds: float
    cost_seconds: float = 0.0
    _last: float = 0.0

    def due(self) -> bool:
        """Whether the interval has passed since the last snapshot."""
        if self.cost_seconds == 0.0:
            return True
        return time.monotonic() - self._last >= best_interval(self.cost_seconds, self.mtbf_seconds)

    def written(self, held_up_seconds: float) -> None:
        """A snapshot was handed over and held up the training for so long."""
        cost = max(held_up_seconds, SMALLEST_COST_SECONDS)
        if cost > 1.2 * self.cost_seconds:
            self.cost_seconds = cost
            interval = best_interval(cost, self.mtbf_seconds)
            overhead = 100 * expected_overhead(interval, cost, self.mtbf_seconds)
            hours = self.mtbf_seconds / 3600
            logger.info("a snapshot costs %.3g s, a failure comes every %.3g h: chosen is one every %.3g s, "
                        "expected overhead %.2g%%", cost, hours, interval, overhead)  # fmt: skip
        self._last = time.monotonic()
