"""What may happen in a folder that already holds a run."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from util.config import RECORD, Config, read_config_file
from util.errors import UsageError
from util.files import write_text
from util.run_file import read_run_file
from util.run_options import RunOptions

logger = logging.getLogger(__name__)


def claim_run_folder(config: Config) -> None:
    """Check ``--mode train``, ``train_deq`` or ``continue`` against what ``workdir`` holds, and write ``config.txt``.

    The first two, in a folder with an unfinished run of the same configuration, carry it on; another configuration is
    refused with the difference.

    Raises:
        UsageError: the folder holds another run, a finished one, or (``continue``) none.
    """
    workdir = config[RunOptions].folder
    recorded = workdir / RECORD
    earlier = read_config_file(recorded, config.catalogue) if recorded.is_file() else None
    if config[RunOptions].mode != "continue" and earlier is not None:
        if config[RunOptions].overwrite:
            _empty(workdir)
        elif difference := config.difference(earlier):
            go_on = "--mode continue to go on with the new values, " if config[RunOptions].mode == "train" else ""
            raise UsageError(
                f"{workdir} holds a run of another configuration ({'; '.join(difference)}); use another --workdir, "
                f"{go_on}or --overwrite to start again"
            )
        elif read_run_file(workdir).get("state") == "finished":
            raise UsageError(
                f"{workdir} holds a finished run of this configuration; use another --workdir, or --overwrite"
            )
    if config[RunOptions].mode == "continue" and earlier is not None:
        for change in config.difference(earlier):
            logger.warning("continuing with a changed setting: %s", change)
    workdir.mkdir(parents=True, exist_ok=True)
    write_text(recorded, config.text(once=False))


def _empty(workdir: Path) -> None:
    """Remove what a run writes, and nothing else that may be in the folder."""
    for name in ("checkpoints", "tensorboard", "samples", "evaluations", "diagnostics"):
        shutil.rmtree(workdir / name, ignore_errors=True)
    for name in ("metrics.jsonl", "run.json"):
        (workdir / name).unlink(missing_ok=True)
