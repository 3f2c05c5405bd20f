"""The interval of least expected loss, against a simulation of runs that die."""

import numpy as np
import pytest

from trainers.snapshot_interval import SnapshotInterval, best_interval, expected_overhead


@pytest.mark.parametrize(("cost", "mtbf"), [(1.0, 3600.0), (30.0, 6 * 3600.0), (5.0, 600.0)])
def test_first_order_is_young(cost: float, mtbf: float) -> None:
    assert best_interval(cost, mtbf) == pytest.approx((2 * cost * mtbf) ** 0.5, rel=0.1)


def lost_fraction(interval: float, cost: float, mtbf: float, generator: np.random.Generator) -> float:
    """Simulated: work until a failure counts in whole intervals only."""
    work = spent = 0.0
    for time_to_failure in generator.exponential(mtbf, 40_000):
        work += (time_to_failure // (interval + cost)) * interval
        spent += time_to_failure
    return 1 - work / spent


@pytest.mark.parametrize(("cost", "mtbf"), [(10.0, 1000.0), (2.0, 3600.0)])
def test_other_intervals_lose_more(cost: float, mtbf: float) -> None:
    best = best_interval(cost, mtbf)
    lost = {factor: lost_fraction(best * factor, cost, mtbf, np.random.default_rng(0)) for factor in (0.4, 1.0, 2.5)}
    assert lost[1.0] < min(lost[0.4], lost[2.5])
    assert lost[1.0] == pytest.approx(expected_overhead(best, cost, mtbf), rel=0.15)


def test_the_first_snapshot_is_due_at_once_and_sets_the_interval() -> None:
    interval = SnapshotInterval(mtbf_seconds=3600.0)
    assert interval.due()
    interval.written(0.5)
    assert interval.cost_seconds == 0.5
    assert not interval.due()
    interval.written(2.0)
    assert interval.cost_seconds == 2.0
