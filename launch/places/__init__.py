"""Where a process is: one module for each way to be started, and the list in which they are tried.

Each is recognised by variables in its environment, and says where the process is: an agent that starts ranks, or a rank
already. A further launcher is a module beside these and an entry in ``PLACES``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Protocol

from launch.options import LaunchOptions
from launch.places import flags, open_mpi, slurm, torchrun
from launch.places.topology import RankPlace, Topology


class Place(Protocol):
    """A way to be started."""

    @property
    def VARIABLES(self) -> tuple[str, ...]:
        """The names of the variables that a process started in this way has, all of them."""
        ...

    def find(self, options: LaunchOptions, environment: Mapping[str, str], /) -> Topology | RankPlace:
        """Where this process is. Collective where the launcher starts processes on several nodes.

        Raises:
            UsageError: environment and flags contradict each other, or are incomplete.
            RunFailed: the launcher's processes did not come together.
        """
        ...


PLACES: tuple[Place, ...] = (torchrun, open_mpi, slurm, flags)
"""In the order in which they are tried; torchrun may run inside mpirun or srun, and the flags are always there."""


def find_place(options: LaunchOptions, environment: Mapping[str, str] = os.environ) -> Topology | RankPlace:
    """Where this process is.

    Raises:
        UsageError, RunFailed: as ``Place.find``.
    """
    place = next(place for place in PLACES if all(name in environment for name in place.VARIABLES))
    return place.find(options, environment)
