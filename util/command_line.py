"""From command line and configuration files to one configuration, with ``--help`` for what a system reads.

The command line wins over ``-sc`` files, those over ``-cc`` files, later files over earlier ones, all over defaults. A
command that looks at an earlier run, or goes on with it, and has no ``-cc`` file takes what the run's folder says.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import sys
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

import configargparse

from util.config import RECORD, Catalogue, Config, published_keys
from util.config_file import Setting, read_settings
from util.errors import UsageError
from util.option import Option
from util.option_values import options_of, read, written
from util.run_options import RunOptions

DESCRIPTION = "Train and evaluate score-based generative models, on one process or on many nodes."
CONFIG_FLAGS = ("-cc", "--config")
SPECIAL_CONFIG_FLAGS = ("-sc", "--special_config")
METAVARS: dict[Any, str] = {bool: "BOOL", int: "N", float: "X", str: "TEXT", int | str: "N|auto"}


class _Settings(configargparse.ConfigFileParser):
    """Hands on settings that have been read and checked already."""

    def get_syntax_description(self) -> str:
        return ""

    def parse(self, stream: IO[str]) -> OrderedDict[str, str]:
        return OrderedDict(json.load(stream))


class _Parser(configargparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        message = re.sub(r"^argument (--\w+): '(.*?)': ", r"\1 \2: ", message, flags=re.DOTALL)
        raise UsageError(f"{message} (--help lists every flag)")


def parse(argv: Sequence[str], catalogue: Catalogue, prog: str = "main.py") -> Config:
    """The configuration of a command line, checked option by option.

    ``--help`` and ``--print_config`` print and leave with exit code 0.

    Raises:
        UsageError: an unknown flag or key, one on the command line that the system does not read, a wrong type, a value
            out of range, an unreadable file.
        SystemExit: after ``--help`` or ``--print_config``.
    """
    common, special, rest = _configuration_files(argv)
    settings = _merged(common + special)
    given = set(settings)
    earlier = None if common else _earlier_run(rest, settings, catalogue)
    if earlier is not None:
        settings = _recorded(earlier, catalogue) | settings
    system, network = (_chosen(rest, settings, catalogue, key) for key in ("system", "name"))
    wanted = _help_wanted(rest)
    if wanted == "overview" and not _names(rest, "system"):
        sys.stdout.write(overview(catalogue, prog))
        raise SystemExit(0)
    network = catalogue.network(system, network)
    groups = catalogue.groups(system, network)
    if wanted:
        make_parser(catalogue.every_group() if wanted == "all" else groups, prog).print_help()
        raise SystemExit(0)
    settings, notes = _of_groups(settings, groups, catalogue, system)
    parser = make_parser(groups, prog)
    rest = _without_published_keys(rest, groups)
    known, unknown = parser.parse_known_args(
        rest, config_file_contents=json.dumps({key: setting.text for key, setting in settings.items()})
    )
    if unknown:
        raise _unknown(unknown[0], groups, catalogue, system)
    values = vars(known)
    print_config = values.pop("print_config")
    options = {option.flag: option for group in groups for option in options_of(group)}
    given = given | {flag for flag in options if _names(rest, flag)}
    values = {**{flag: values[flag] for flag in options}, "name": network}
    config = Config(catalogue, values, given, notes)
    if earlier is not None and config[RunOptions].model_folder != earlier:  # the run had a root, or has been moved
        config = Config(catalogue, {**values, "workdir": str(earlier.absolute())}, given, notes)
    if print_config:
        sys.stdout.write(config.text())
        raise SystemExit(0)
    return config


def make_parser(groups: Sequence[type], prog: str = "main.py") -> configargparse.ArgumentParser:
    """A parser with one section for each dataclass that declares options."""
    parser = _Parser(
        prog=prog,
        description=DESCRIPTION,
        config_file_parser_class=_Settings,
        add_config_file_help=False,
        add_env_var_help=False,
        allow_abbrev=False,
        usage=f"{prog} [-cc FILE]... [-sc FILE]... [--key value]...",
    )
    files = parser.add_argument_group("configuration files", "lines of 'key = value'; 'include = FILE' may come first")
    files.add_argument(
        "-cc", "--config", metavar="FILE", help="may be given any number of times; later files win over earlier ones, "
        "flags over all files [--mode continue, eval and sample: workdir/config.txt]",
    )  # fmt: skip
    files.add_argument("-sc", "--special_config", metavar="FILE", help="likewise; these win over all -cc files")
    files.add_argument("--print_config", action="store_true", help="print what all files and flags come to, and stop")
    sections: dict[type, Any] = {}
    seen: set[str] = set()
    for group in groups:
        for option in options_of(group):
            if option.flag in seen:
                continue
            seen.add(option.flag)
            owner = option.declared_in
            if owner not in sections:
                sections[owner] = parser.add_argument_group(title_of(owner))
            sections[owner].add_argument(f"--{option.flag}", **argument_of(option))
    return parser


def add_options(parser: argparse.ArgumentParser, group: type) -> None:
    """Give a command of its own the options that a dataclass declares, in one section."""
    section = parser.add_argument_group(title_of(group))
    for option in options_of(group):
        section.add_argument(f"--{option.flag}", **argument_of(option))


def title_of(group: type) -> str:
    """The first line of what a dataclass says of itself."""
    return (group.__doc__ or group.__name__).strip().splitlines()[0].rstrip(".")


def argument_of(option: Option) -> dict[str, Any]:
    """What argparse's ``add_argument`` is told of an option."""

    def parse_text(text: str) -> Any:
        try:
            return read(option, text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"'{text}': {error}") from None

    choices = option.metadata["choices"]
    argument: dict[str, Any] = {
        "type": parse_text,
        "default": option.default,
        "dest": option.flag,
        "help": option.metadata["help"].replace("%", "%%") + f" [{written(option.default) or 'none'}]",
        "metavar": "|".join(filter(None, map(written, choices))) if choices else METAVARS.get(option.kind, "N,N,..."),
    }
    alone = True if option.kind is bool else option.metadata["alone"]
    if alone is not None:
        argument |= {"nargs": "?", "const": alone}
    return argument


def overview(catalogue: Catalogue, prog: str) -> str:
    """What ``--help`` says without a system: the shape of a command, and where to read on."""
    width = max(map(len, catalogue.systems))
    systems = "\n".join(f"  {name:<{width}}  {reads.summary}" for name, reads in catalogue.systems.items())
    run = make_parser(catalogue.shared[:1], prog).format_help().split("\n\n", 2)[2]
    return f"""{DESCRIPTION}

usage: {prog} -cc configs/cld/cifar10.txt --workdir work_dir/cifar10
       {prog} -cc configs/cld/cifar10.txt --workdir work_dir/cifar10 --mode eval --eval_likelihood

systems (--system):
{systems}
  {"package.module:NAME":<{width}}  a System of your own (docs/extending.md)

{run}
{prog} --system NAME --help   every option that this system reads
{prog} --help all             every option of every system
"""


def _help_wanted(argv: Sequence[str]) -> str:
    for index, word in enumerate(argv):
        if word in ("-h", "--help"):
            return "all" if list(argv[index + 1 : index + 2]) == ["all"] else "overview"
    return ""


def _configuration_files(argv: Sequence[str]) -> tuple[list[Path], list[Path], list[str]]:
    """The -cc files, the -sc files, and the rest of the command line."""
    common: list[Path] = []
    special: list[Path] = []
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        flag, separator, value = word.partition("=")
        if flag not in CONFIG_FLAGS + SPECIAL_CONFIG_FLAGS:
            rest.append(word)
            continue
        if not separator:
            value = next(words, "")
        path = Path(os.path.expanduser(value))
        if not os.path.isfile(path):
            raise UsageError(f"{flag} {value}: no such file; the published settings are in configs/")
        (common if flag in CONFIG_FLAGS else special).append(path)
    return common, special, rest


def _earlier_run(argv: Sequence[str], settings: dict[str, Setting], catalogue: Catalogue) -> Path | None:
    """The folder of the run that the command looks at or goes on with, where it says how it was configured.

    Raises:
        UsageError: the command would go on with a run whose configuration nobody says.
    """
    mode, root, workdir = (_chosen(argv, settings, catalogue, key) for key in ("mode", "root", "workdir"))
    folder = Path(os.path.expanduser(root)) / os.path.expanduser(workdir)
    if mode not in ("continue", "eval", "sample") or not workdir:
        return None
    if (folder / RECORD).is_file():
        return folder
    if mode == "continue" and folder.is_dir():
        raise UsageError(f"--mode continue: {folder} has no {RECORD}; give the settings of the run with -cc")
    return None


def _recorded(folder: Path, catalogue: Catalogue) -> dict[str, Setting]:
    """What an earlier run was configured with, apart from what counted for the command that began it."""
    once = {option.flag for group in catalogue.shared for option in options_of(group) if option.metadata["once"]}
    return {key: setting for key, setting in read_settings(folder / RECORD).items() if key not in once}


def _merged(files: Sequence[Path]) -> dict[str, Setting]:
    settings: dict[str, Setting] = {}
    for path in files:
        settings |= read_settings(path)
    return settings


def _names(argv: Sequence[str], key: str) -> bool:
    return any(word.split("=")[0] == f"--{key}" for word in argv)


def _chosen(argv: Sequence[str], settings: dict[str, Setting], catalogue: Catalogue, key: str) -> str:
    """The value of an option on which it depends which others there are."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{key}", nargs="?")
    given = getattr(parser.parse_known_args(list(argv))[0], key)
    if given is not None:
        return given
    return settings[key].text if key in settings else catalogue.default(key)


def _of_groups(
    settings: dict[str, Setting], groups: Sequence[type], catalogue: Catalogue, system: str
) -> tuple[dict[str, Setting], list[str]]:
    """The checked settings that the groups read, and a note about those that nobody here does."""
    known = {option.flag: option for group in groups for option in options_of(group)}
    fixed = published_keys(groups)
    every = catalogue.every(system)
    everyones_fixed = published_keys(catalogue.every_group())
    chosen: dict[str, Setting] = {}
    passed_over: list[str] = []
    for key, setting in settings.items():
        if key in known:
            try:
                read(known[key], setting.text)
            except ValueError as error:
                raise UsageError(f"{setting.where}: {key} = {setting.text}: {error}") from None
            chosen[key] = setting
        elif key in fixed:
            _check_published_key(setting.text, fixed[key], f"{setting.where}: {key} =")
        elif key in every:
            try:
                if read(every[key], setting.text) != every[key].default:
                    passed_over.append(key)
            except ValueError:
                passed_over.append(key)
        elif key not in everyones_fixed:
            nearest = _nearest(key, [*known, *every])
            raise UsageError(f"{setting.where}: unknown key '{key}'; did you mean '{nearest}'?")
    if not passed_over:
        return chosen, []
    count = "1 option" if len(passed_over) == 1 else f"{len(passed_over)} options"
    return chosen, [f"the files give {count} that --system {system} does not read: {', '.join(passed_over)}"]


def _check_published_key(text: str, value: Any, where: str) -> None:
    if text.lower() != written(value).lower():
        raise UsageError(f"{where} {text}: only {written(value)} is known here")


def _without_published_keys(argv: Sequence[str], groups: Sequence[type]) -> list[str]:
    """The command line without flags of published settings that allow one value here, which they have to give."""
    fixed = published_keys(groups)
    rest: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        flag, separator, value = word.partition("=")
        key = flag.removeprefix("--")
        if not flag.startswith("--") or key not in fixed:
            rest.append(word)
            continue
        if not separator:
            value = words.pop(0) if words and not words[0].startswith("--") else "true"
        _check_published_key(value, fixed[key], flag)
    return rest


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return close[0] if close else ""


def _unknown(word: str, groups: Sequence[type], catalogue: Catalogue, system: str) -> UsageError:
    flag = word.split("=")[0]
    key = flag.removeprefix("--")
    if flag.startswith("--") and key in catalogue.every(system):
        readers = catalogue.readers(key)
        whose = f"; it is an option of {', '.join(readers)}" if readers else ""
        network = " with this --name" if system in readers else ""
        return UsageError(f"{flag} is not read by --system {system}{network}{whose}; leave it out")
    flags = [f"--{option.flag}" for group in groups for option in options_of(group)]
    hint = f"; did you mean '{_nearest(flag, flags)}'?" if flag.startswith("-") else ""
    return UsageError(f"unknown argument '{word}'{hint}")
