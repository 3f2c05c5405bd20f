"""What all ranks have to know at the same step boundary, without any of them waiting for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from util.distributed import Distributed


class Agreement:
    """Agrees on whether to stop, whether a step went wrong, and whether a snapshot is due.

    The ranks' flags travel over the control group while a step computes. On a GPU the host then looks only at results
    of a step before the one it has just queued, so it never drains the device's queue.

    Args:
        distributed: this process's place.
        stop_requested: read at the beginning of every step.
    """

    def __init__(self, distributed: Distributed, stop_requested: Callable[[], bool]) -> None:
        self.distributed = distributed
        self.stop_requested = stop_requested
        self._unseen: list[tuple[int, dict[str, torch.Tensor]]] = []
        self._bad: tuple[int, dict[str, float]] | None = None
        self._flags = torch.zeros(3, dtype=torch.int32)
        self._work: Any = None

    def begin(self, snapshot_wanted: bool) -> None:
        """Before a step: send this rank's flags."""
        flags = [self.stop_requested(), self._bad is not None, snapshot_wanted]
        self._flags = torch.tensor(flags, dtype=torch.int32)
        self._work = self.distributed.start_maximum(self._flags)

    def end(self, step: int, terms: dict[str, torch.Tensor]) -> tuple[bool, bool, bool]:
        """After a step: what the ranks agreed on when it began.

        Args:
            step: number of completed steps.
            terms: scalars that have to be finite; looked at later, so they must not be changed in place.

        Returns:
            (stop, failed, snapshot): some rank was asked to stop; some rank saw a non-finite term; some rank wants a
            snapshot.
        """
        self._unseen.append((step, terms))
        on_host = all(term.device.type == "cpu" for term in terms.values())
        self._look(keep=0 if on_host else 1)
        if self._work is not None:
            self._work.wait()
        stop, failed, snapshot = (bool(flag) for flag in self._flags)
        return stop, failed, snapshot

    def settle(self) -> bool:
        """Wait for every step so far; whether any of them failed on any rank. Needed before a snapshot."""
        self._look(keep=0)
        return self.distributed.any(self._bad is not None)

    def _look(self, keep: int) -> None:
        while len(self._unseen) > keep:
            step, terms = self._unseen.pop(0)
            values = {name: float(term) for name, term in terms.items()}
            if self._bad is None and not all(map(_is_finite, values.values())):
                self._bad = (step, values)

    def failures(self) -> list[tuple[int, int, dict[str, float]]]:
        """After a failure, on every rank: (step, rank, terms) of the ranks that saw one, the earliest first."""
        everyone = self.distributed.gather(self._bad)
        found = [(bad[0], rank, bad[1]) for rank, bad in enumerate(everyone) if bad is not None]
        # The loss comes before the gradient norm, which is the same on all ranks once it has been summed.
        return sorted(found, key=lambda entry: (entry[0], _is_finite(entry[2].get("loss", 0.0)), entry[1]))


def _is_finite(value: float) -> bool:
    return value - value == 0.0
