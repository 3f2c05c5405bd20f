"""Turn a published checkpoint into a snapshot: ``python -m trainers.import_checkpoint SYSTEM IN [IN ...] OUT``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from trainers.system import load
from trainers.systems import SYSTEMS
from util.errors import EXIT_FINISHED, EXIT_USAGE, UsageError
from util.files import why_not_written
from util.snapshot import write_snapshot

IMPORTERS = {program: place for system in SYSTEMS.values() for program, place in system.importers.items()}
"""For each program, what makes the state of a snapshot of its files."""


def convert(system: str, sources: Sequence[Path], target: Path) -> None:
    """Read, convert and write; ``target`` appears whole or not at all.

    Raises:
        UsageError: the source is not what ``system`` says, or the target cannot be written.
    """
    if target.exists() and any(source.exists() and target.samefile(source) for source in sources):
        raise UsageError(f"{target}: is the checkpoint to convert itself; give another name for the snapshot")
    if not target.parent.is_dir() or target.is_dir():
        raise UsageError(f"{target}: cannot be written; give a file name in a folder that exists")
    state = load(IMPORTERS[system])(sources)
    try:
        write_snapshot(target, state)
    except (OSError, RuntimeError) as error:
        raise UsageError(f"{target}: cannot be written: {why_not_written(error)}; choose a place with room") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0, or 2 with one line on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m trainers.import_checkpoint",
        description="Turn a published checkpoint into a snapshot that --ckpt_file accepts.",
    )
    programs = sorted(IMPORTERS)
    parser.add_argument(
        "system", metavar="SYSTEM", choices=programs, help=f"program that wrote the checkpoint: {', '.join(programs)}"
    )
    parser.add_argument("sources", metavar="IN", type=Path, nargs="+", help="file or files of the published checkpoint")
    parser.add_argument("target", metavar="OUT", type=Path, help="snapshot to write")
    options = parser.parse_args(arguments)
    try:
        convert(options.system, options.sources, options.target)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    print(f"wrote {options.target}")
    return EXIT_FINISHED


if __name__ == "__main__":
    sys.exit(main())
