"""Fixtures that start real clusters."""

from pathlib import Path

import pytest

from tests.cluster.slurm_cluster import slurm
from tests.cluster.slurm_runs import TRAINING
from tests.system.command import run

__all__ = ["slurm"]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two ranks on this machine that nothing interrupts."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    words = TRAINING[2:]
    options = {name.lstrip("-"): value for name, value in zip(words[::2], words[1::2], strict=True)}
    run(workdir, config=TRAINING[1], n_gpus_per_node=2, **options)
    return workdir
