"""What arguments of main.py come to: it is asked, because nothing in here knows which options there are."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

from util.config_file import parse_line
from util.errors import EXIT_FINISHED, EXIT_USAGE, RunFailed, UsageError
from util.option_values import options_of, read
from util.run_options import RunOptions

MAIN = Path(__file__).parents[1] / "main.py"
Group = TypeVar("Group")


@dataclass(frozen=True)
class Command:
    """Arguments of main.py, resolved.

    Attributes:
        arguments: as given.
        settings: for every option that is read, the text of its value by its flag.
    """

    arguments: tuple[str, ...]
    settings: Mapping[str, str]

    def __getitem__(self, group: type[Group]) -> Group:
        """The values of a group of options that every command reads."""
        options = options_of(cast(type, group))
        return group(**{option.field: read(option, self.settings[option.flag]) for option in options})

    @property
    def folder(self) -> Path:
        """The folder of the run. Raises UsageError where the arguments name none."""
        if not self[RunOptions].workdir:
            raise UsageError("--workdir is missing: give a folder for (or of) the run that all nodes see")
        return self[RunOptions].folder


def resolve(arguments: Sequence[str]) -> Command:
    """Ask main.py what its arguments come to.

    Raises:
        UsageError: it refuses them.
        RunFailed: it cannot say.
        SystemExit: they ask for its help, which has been printed.
    """
    words = [sys.executable, str(MAIN), *arguments]
    if {"-h", "--help"} & set(arguments):
        raise SystemExit(subprocess.run(words, stdin=subprocess.DEVNULL).returncode)
    done = subprocess.run([*words, "--print_config"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode == EXIT_USAGE:
        raise UsageError(done.stderr.strip().removeprefix("error: "))
    if done.returncode != EXIT_FINISHED:
        raise RunFailed(f"{MAIN} cannot read its options (exit code {done.returncode}): {done.stderr.strip()}")
    lines = (parse_line(line, MAIN.name) for line in done.stdout.splitlines())
    return Command(tuple(arguments), {key: text for key, text in lines if key})
