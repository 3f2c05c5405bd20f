"""From command line and configuration files to one typed configuration.

Precedence: command line, ``-sc`` file, ``-cc`` file, default. Configuration files are ``key = value`` lines.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import typing
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, NoReturn

import configargparse

from util.errors import UsageError
from util.options import (
    DataOptions,
    EvaluationOptions,
    LaunchOptions,
    LikelihoodOptions,
    NetworkOptions,
    ObjectiveOptions,
    OptimizationOptions,
    ProcessOptions,
    RunOptions,
    SamplingOptions,
    TrainingOptions,
)
from util.system_options import (
    BoundOptions,
    DequantizerOptions,
    DiscreteOptions,
    HsiviOptions,
    JointOptions,
    LogSnrOptions,
    PredictorCorrectorOptions,
)


@dataclass
class Config:
    """The resolved configuration, one attribute for each group of options."""

    run: RunOptions = field(default_factory=RunOptions)
    launch: LaunchOptions = field(default_factory=LaunchOptions)
    data: DataOptions = field(default_factory=DataOptions)
    process: ProcessOptions = field(default_factory=ProcessOptions)
    discrete: DiscreteOptions = field(default_factory=DiscreteOptions)
    log_snr: LogSnrOptions = field(default_factory=LogSnrOptions)
    objective: ObjectiveOptions = field(default_factory=ObjectiveOptions)
    network: NetworkOptions = field(default_factory=NetworkOptions)
    optimization: OptimizationOptions = field(default_factory=OptimizationOptions)
    joint: JointOptions = field(default_factory=JointOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    hsivi: HsiviOptions = field(default_factory=HsiviOptions)
    predictor_corrector: PredictorCorrectorOptions = field(default_factory=PredictorCorrectorOptions)
    likelihood: LikelihoodOptions = field(default_factory=LikelihoodOptions)
    bound: BoundOptions = field(default_factory=BoundOptions)
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    dequantizer: DequantizerOptions = field(default_factory=DequantizerOptions)

    @property
    def model_folder(self) -> Path:
        """The folder of the model, which ``--workdir`` names."""
        return Path(self.run.root) / self.run.workdir

    @property
    def dequantizer_folder(self) -> Path:
        """The folder of the model's dequantizer."""
        return self.model_folder / "dequantizer"

    @property
    def workdir(self) -> Path:
        """The folder of this run: training a dequantizer is a run of its own, in a folder inside the model's."""
        return self.dequantizer_folder if self.run.mode == "train_deq" else self.model_folder

    @property
    def data_location(self) -> Path:
        return Path(self.run.root) / self.data.data_location

    def flat(self) -> dict[str, Any]:
        """Every option by its flag's name."""
        return {item.name: getattr(getattr(self, group), item.name) for group, item in _fields()}

    def text(self) -> str:
        """The configuration file that gives this configuration when passed with ``-cc``."""
        lines = []
        for group in GROUPS:
            lines.append(f"# {group}")
            for item in dataclasses.fields(GROUPS[group]):
                value = _written(getattr(getattr(self, group), item.name))
                lines.append(f"{item.name} = {value}" if value else f"# {item.name} =")
            lines.append("")
        return "\n".join(lines)

    def difference(self, earlier: dict[str, Any]) -> list[str]:
        """Options that make this another training run than ``earlier`` (flat), each as ``name: before -> now``."""
        changed = []
        for group, item in _fields():
            now = getattr(getattr(self, group), item.name)
            defines_run = item.metadata["defines_run"]
            if isinstance(defines_run, tuple):
                defines_run = self.run.system in defines_run
            if defines_run and item.name in earlier and earlier[item.name] != now:
                changed.append(f"{item.name}: {_written(earlier[item.name])} -> {_written(now)}")
        return changed


GROUPS: dict[str, Any] = {item.name: item.default_factory for item in dataclasses.fields(Config)}
"""The groups of options by their name in ``Config``."""


def _fields() -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    for group, options in GROUPS.items():
        for item in dataclasses.fields(options):
            yield group, item


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(str(entry) for entry in value)
    return str(value)


def _read_bool(text: str) -> bool:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in words:
        raise ValueError("true or false expected")
    return words[text.lower()]


def _read_int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        number = _read_float(text)
        if not number.is_integer():
            raise ValueError("a whole number expected") from None
        return int(number)


def _read_float(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError("a number expected") from None
    if not math.isfinite(number):
        raise ValueError("a finite number expected")
    return number


def _read_list(text: str) -> list[int]:
    return [_read_int(part.strip()) for part in text.strip("[]() ").split(",") if part.strip()]


def _read_int_or_auto(text: str) -> int | str:
    return "auto" if text == "auto" else _read_int(text)


READERS: dict[Any, Callable[[str], Any]] = {
    bool: _read_bool,
    int: _read_int,
    float: _read_float,
    str: str,
    list[int]: _read_list,
    int | str: _read_int_or_auto,
}
"""How each type of option is read from text; each raises ValueError that says what was expected."""


def _reader(group: str, item: dataclasses.Field[Any]) -> Callable[[str], Any]:
    """Text to a checked value of this option."""
    read = READERS[typing.get_type_hints(GROUPS[group])[item.name]]
    metadata = item.metadata

    def checked(text: str) -> Any:
        value = read(text)
        for entry in value if isinstance(value, list) else [value]:
            if metadata["choices"] and entry not in metadata["choices"]:
                raise ValueError(f"one of {', '.join(map(_written, metadata['choices']))} expected")
            if entry == "auto":
                continue
            if metadata["minimum"] is not None and entry < metadata["minimum"]:
                raise ValueError(f"at least {metadata['minimum']:g} expected")
            if metadata["above"] is not None and entry <= metadata["above"]:
                raise ValueError(f"more than {metadata['above']:g} expected")
            if metadata["maximum"] is not None and entry > metadata["maximum"]:
                raise ValueError(f"at most {metadata['maximum']:g} expected")
        return value

    return checked


def option_readers() -> dict[str, Callable[[str], Any]]:
    """For each option, the function that reads and checks its text."""
    return {item.name: _reader(group, item) for group, item in _fields()}


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return close[0] if close else ""


class _FileParser(configargparse.ConfigFileParser):
    """``key = value`` lines; checks each where its file and line are known."""

    def get_syntax_description(self) -> str:
        return "Configuration files hold lines 'key = value'; '#' starts a comment and [sections] are ignored."

    def parse(self, stream: IO[str]) -> OrderedDict[str, str]:
        readers = option_readers()
        items: OrderedDict[str, str] = OrderedDict()
        seen: dict[str, int] = {}
        try:
            lines = stream.read().splitlines()
        except UnicodeDecodeError:
            raise UsageError(f"{stream.name} is not a text file; give a file of 'key = value' lines") from None
        for number, line in enumerate(lines, start=1):
            where = f"{stream.name} line {number}"
            line = re.split(r"(?:^|\s)[#;]", line, maxsplit=1)[0].strip()
            if not line or re.fullmatch(r"\[.*\]", line):
                continue
            key, separator, value = (part.strip() for part in line.partition("="))
            if not separator:
                raise UsageError(f"{where}: '{line}' is not a setting; write 'key = value'")
            if key not in readers:
                raise UsageError(f"{where}: unknown key '{key}'; did you mean '{_nearest(key, list(readers))}'?")
            if key in seen:
                raise UsageError(f"{where}: '{key}' was set in line {seen[key]} already; keep one of the two")
            try:
                readers[key](value)
            except ValueError as error:
                raise UsageError(f"{where}: {key} = {value}: {error}") from None
            seen[key] = number
            items[key] = value
        return items


class _Parser(configargparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (--help lists every flag)")


def make_parser() -> configargparse.ArgumentParser:
    """The command line's parser, with one group of flags for each group of options."""
    readers = option_readers()
    parser = _Parser(
        prog="main.py",
        description="Train and evaluate score-based generative models, on one process or on many nodes.",
        config_file_parser_class=_FileParser,
        ignore_unknown_config_file_keys=False,
        add_env_var_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("-cc", "--config", is_config_file=True, metavar="FILE", help="configuration file")
    parser.add_argument(
        "-sc", "--special_config", is_config_file=True, metavar="FILE", help="configuration file that overrides -cc"
    )
    for group, options in GROUPS.items():
        section = parser.add_argument_group(group, (options.__doc__ or "").strip())
        for item in dataclasses.fields(options):
            section.add_argument(f"--{item.name}", **_argument(group, item, readers[item.name]))
    return parser


def _argument(group: str, item: dataclasses.Field[Any], read: Callable[[str], Any]) -> dict[str, Any]:
    default = item.default if item.default is not dataclasses.MISSING else item.default_factory()  # type: ignore[operator]
    kind = typing.get_type_hints(GROUPS[group])[item.name]

    def parse(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise configargparse.ArgumentTypeError(f"'{text}': {error}") from None

    names = {bool: "BOOL", int: "N", float: "X", str: "TEXT", int | str: "N|auto"}
    help_text = item.metadata["help"].replace("%", "%%") + f" [{_written(default) or 'none'}]"
    choices = item.metadata["choices"]
    metavar = "|".join(_written(choice) for choice in choices) if choices else names.get(kind, "N,N,...")
    argument: dict[str, Any] = {"type": parse, "default": default, "help": help_text, "metavar": metavar}
    if kind is bool:
        argument |= {"nargs": "?", "const": True}
    return argument


def parse_config(argv: Sequence[str]) -> Config:
    """The configuration of a command line, checked option by option (``util.check`` does what spans several).

    Raises:
        UsageError: unknown flag or key, wrong type, value out of range, unreadable file.
    """
    parser = make_parser()
    for flag, value in pairwise(argv):
        if flag in ("-cc", "--config", "-sc", "--special_config") and not Path(value).is_file():
            raise UsageError(f"{flag} {value}: no such file; the published settings are in configs/")
    known, unknown = parser.parse_known_args(_config_files_in_order(argv))
    if unknown:
        flags = [name for action in parser._actions for name in action.option_strings]
        first = unknown[0].split("=")[0]
        hint = f"; did you mean '{_nearest(first, flags)}'?" if first.startswith("-") else ""
        raise UsageError(f"unknown argument '{unknown[0]}'{hint}")
    values = vars(known)
    groups = {
        group: options(**{item.name: values[item.name] for item in dataclasses.fields(options)})
        for group, options in GROUPS.items()
    }
    return Config(**groups)


def _config_files_in_order(argv: Sequence[str]) -> list[str]:
    """``-cc`` before ``-sc``, so that the special file wins whatever their order on the command line."""
    special: list[str] = []
    rest: list[str] = []
    position = 0
    while position < len(argv):
        flag = argv[position].split("=")[0]
        width = 1 if "=" in argv[position] else 2
        if flag in ("-sc", "--special_config"):
            special += argv[position : position + width]
            position += width
        else:
            rest.append(argv[position])
            position += 1
    return rest + special


def read_config_file(path: Path) -> dict[str, Any]:
    """The options that a configuration file gives, typed.

    Raises:
        UsageError: as ``parse_config``.
    """
    readers = option_readers()
    with path.open() as stream:
        items = _FileParser().parse(stream)
    return {key: readers[key](value) for key, value in items.items()}
