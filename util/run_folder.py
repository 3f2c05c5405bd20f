"""What may happen in a folder that already holds a run."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from util.config import RECORD, Config, read_config_file
from util.errors import UsageError
from util.files import write_text
from util.lock import refuse_where_held
from util.overwritten import (
    DEPENDENT,
    FOLDERS,
    bring_back,
    check_can_be_set_aside,
    holds_overwritten,
    set_aside,
    settle,
)
from util.run_file import read_run_file
from util.run_options import RunOptions
from util.snapshot import find_snapshots, read_snapshot

logger = logging.getLogger(__name__)


def check_run_folder(config: Config) -> None:
    """Check ``--mode train``, ``train_deq`` or ``continue`` against what ``workdir`` holds, before any work.

    The first two, in a folder with an unfinished run of the same configuration, carry it on; another configuration is
    refused with the difference. Nothing changes in the folder, but that a run comes back which one without a snapshot
    has overwritten; only the same configuration carries that one on.

    Raises:
        UsageError: the folder holds another run, a finished one, or what cannot be written to or overwritten.
    """
    run = config[RunOptions]
    workdir = run.folder
    for folder in (workdir / name for name in FOLDERS):
        if os.path.lexists(folder) and not folder.is_dir():
            raise UsageError(f"{folder} is no folder, or a link to none; remove it, or make the folder")
    for folder in (workdir, workdir / DEPENDENT) if run.starts_again else ():
        refuse_where_held(folder, config.flat()["node_timeout"], "wait for its end or stop it before --overwrite")
    settle(workdir)
    if run.starts_again:
        return check_can_be_set_aside(workdir)
    if holds_overwritten(workdir) and (run.mode == "continue" or _difference(config) != []):
        bring_back(workdir)
        logger.warning("%s: the run that was being overwritten is back; the new one had no snapshot", workdir)
    difference = _difference(config)
    if run.mode == "continue":
        for change in difference or ():
            logger.warning("continuing with a changed setting: %s", change)
    elif difference:
        go_on = "--mode continue to go on with the new values, " if run.mode == "train" else ""
        raise UsageError(
            f"{workdir} holds a run of another configuration ({'; '.join(difference)}); use another --workdir, "
            f"{go_on}or --overwrite to start again"
        )
    elif difference is not None and read_run_file(workdir).get("state") == "finished":
        raise UsageError(f"{workdir} holds a finished run of this configuration; use another --workdir, or --overwrite")
    return None


def take_run_folder(config: Config) -> None:
    """Make the folder this run's: what it overwrites is set aside, and ``config.txt`` says how it is configured.

    Raises:
        UsageError: what is to be overwritten cannot be moved.
    """
    run = config[RunOptions]
    if run.starts_again:
        set_aside(run.folder)
    write_text(run.folder / RECORD, config.text(once=False))


def _difference(config: Config) -> list[str] | None:
    """What makes this another run than that in the folder, see ``Config.difference``; None where there is none."""
    earlier = _recorded(config)
    return None if earlier is None else config.difference(earlier)


def _recorded(config: Config) -> Mapping[str, Any] | None:
    """How the run in the folder is configured, by its record or else its newest snapshot; None where there is none.

    Raises:
        UsageError: there are snapshots of nobody knows what, and ``continue`` does not say that it knows.
    """
    workdir = config[RunOptions].folder
    if (workdir / RECORD).is_file():
        return read_config_file(workdir / RECORD, config.catalogue)
    newest = find_snapshots(workdir / "checkpoints", logger.warning)
    if newest is None:
        return None
    recorded = read_snapshot(newest.path).get("config")
    if recorded is None and config[RunOptions].mode != "continue":
        raise UsageError(
            f"{newest.path} does not say how it was trained; use another --workdir, or --overwrite to start again"
        )
    return recorded
