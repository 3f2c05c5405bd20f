"""One resolved, typed configuration. Which options there are, the ``Catalogue`` is told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from util.config_file import read_settings
from util.errors import UsageError
from util.option import RUN, Option
from util.option_values import check, flags_of, options_of, plain, read, written, written_in_file

Group = TypeVar("Group")

RECORD = "config.txt"
"""The file in the folder of a run that says how it was configured."""


class Reads(Protocol):
    """What a system reads of the options."""

    @property
    def summary(self) -> str:
        """One line for ``--help``."""
        ...

    @property
    def options(self) -> Sequence[type]:
        """The dataclasses of its own options."""
        ...

    @property
    def networks(self) -> Mapping[str, type]:
        """By their ``--name``, the dataclasses of the networks' options."""
        ...


@dataclass(frozen=True)
class Catalogue:
    """All options there are, and which of them a configuration reads.

    Attributes:
        shared: groups (dataclasses of ``util.option.option`` fields) that every system reads.
        systems: by the value of ``system``.
        find: a system by that value, also one that is not in ``systems``; raises UsageError.
    """

    shared: Sequence[type]
    systems: Mapping[str, Reads]
    find: Callable[[str], Reads]

    def groups(self, system: str, network: str) -> list[type]:
        """What ``--system`` with ``--name`` reads.

        Raises:
            UsageError: there is no such system, or it has no such network.
        """
        reads = self.find(system)
        return [*self.shared, *reads.options, reads.networks[network]]

    def network(self, system: str, name: str) -> str:
        """The network of ``--name``; the system's first where that is not said.

        Raises:
            UsageError: as ``groups``.
        """
        networks = self.find(system).networks
        if name and name not in networks:
            raise UsageError(f"--name {name} is no network of --system {system}; use {' or '.join(networks)}")
        return name or next(iter(networks))

    def every_group(self, *first: str) -> list[type]:
        """What is shared, then what the systems ``first`` read, then what all others read."""
        everybody = [*map(self.find, first), *self.systems.values()]
        return [*self.shared, *(group for reads in everybody for group in (*reads.options, *reads.networks.values()))]

    def every(self, system: str) -> dict[str, Option]:
        """All options by flag, of ``system`` and then of all others."""
        options = [option for group in self.every_group(system) for option in options_of(group)]
        return {option.flag: option for option in reversed(options)}

    def default(self, flag: str) -> Any:
        """Of an option that every system reads."""
        return next(option.default for group in self.shared for option in options_of(group) if option.flag == flag)

    def readers(self, flag: str) -> list[str]:
        """The systems that read an option."""
        return [
            name
            for name, reads in self.systems.items()
            if any(flag in flags_of(group) for group in (*reads.options, *reads.networks.values()))
        ]


def published_keys(groups: Iterable[type]) -> dict[str, Any]:
    """Keys of published settings that allow one value here, and are options no more: their ``published_keys``."""
    return {
        key: value
        for group in groups
        for owner in reversed(group.__mro__)
        for key, value in vars(owner).get("published_keys", {}).items()
    }


class Config:
    """Values of every option that is read, by group: ``config[SamplingOptions].sampling_method``. It never changes.

    Args:
        catalogue: the options.
        values: by flag; options that are not among them have their defaults.
        given: flags that the command line or a file gave, rather than a default.
        notes: what is worth telling whoever wrote the files, a line each.

    Raises:
        UsageError: no such system, or no such network of it.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        values: Mapping[str, Any],
        given: Iterable[str] = (),
        notes: Sequence[str] = (),
    ) -> None:
        self.catalogue = catalogue
        self.given = frozenset(given)
        self.notes = tuple(notes)
        system, network = (values[key] if key in values else catalogue.default(key) for key in ("system", "name"))
        network = catalogue.network(system, network)
        self.groups = catalogue.groups(system, network)
        values = {**values, "name": network}
        self._values = {
            option.flag: values.get(option.flag, option.default)
            for group in self.groups
            for option in options_of(group)
        }
        self._made: dict[type, Any] = {}

    def __getitem__(self, group: type[Group]) -> Group:
        """The values of a group. A group may also be asked for by a class that it inherits from."""
        if group not in self._made:
            found = next((known for known in self.groups if issubclass(known, group)), None)
            if found is None:
                raise KeyError(f"{group.__name__} is not read by this configuration")
            self._made[group] = self.make(found)
        return self._made[group]

    def make(self, group: type[Group], **others: Any) -> Group:
        """A group that has fields beside its options, such as the shapes of the data: ``others`` gives those."""
        return group(**{option.field: self._values[option.flag] for option in options_of(cast(type, group))}, **others)

    def reads(self, group: type) -> bool:
        """Whether there are values of a group."""
        return any(issubclass(known, group) for known in self.groups)

    def options(self) -> Iterator[Option]:
        """Every option that is read."""
        for group in self.groups:
            yield from options_of(group)

    def flat(self) -> dict[str, Any]:
        """Every value by the option's flag, in types that JSON and snapshots know."""
        return {flag: plain(value) for flag, value in self._values.items()}

    def with_values(self, **values: Any) -> Config:
        """The same configuration with other values of some options.

        Raises:
            UsageError: a value that the option does not allow, or an option that this configuration does not read.
        """
        changed = Config(self.catalogue, {**self._values, **values}, self.given | values.keys(), self.notes)
        known = {option.flag: option for option in changed.options()}
        for flag, value in values.items():
            if flag not in known:
                raise UsageError(f"{flag}: not read by --system {changed._values['system']}")
            if isinstance(value, list):
                changed._values[flag] = value = tuple(value)
            try:
                check(known[flag], value)
            except ValueError as error:
                raise UsageError(f"{flag} = {written(value)}: {error}") from None
        return changed

    def text(self, once: bool = True) -> str:
        """The configuration file that gives this configuration when passed with ``-cc``.

        Args:
            once: also the options that count for one command, and are not kept with a run.
        """
        lines: list[str] = []
        section: type | None = None
        for option in self.options():
            if option.metadata["once"] and not once:
                continue
            if option.declared_in is not section:
                section = option.declared_in
                lines += ["", f"# {(section.__doc__ or section.__name__).strip().splitlines()[0]}"]
            lines.append(f"{option.flag} = {written_in_file(self._values[option.flag])}")
        return "\n".join([*lines[1:], ""])

    def difference(self, earlier: Mapping[str, Any]) -> list[str]:
        """Options that make this another training run than ``earlier`` (flat), each as ``name: before -> now``.

        What ``earlier`` does not say had its default.
        """
        changed = []
        earlier = {**Config(self.catalogue, earlier).flat(), **earlier}
        for option in self.options():
            before = earlier.get(option.flag, plain(option.default))
            now = plain(self._values[option.flag])
            if option.effect is RUN and before != now:
                changed.append(f"{option.flag}: {written(before)} -> {written(now)}")
        return changed


def read_config_file(path: Path, catalogue: Catalogue) -> dict[str, Any]:
    """The options that a configuration file gives, typed; keys that are options no more are left out.

    Raises:
        UsageError: an unreadable file, or a value that its option does not allow.
    """
    settings = read_settings(path)
    known = catalogue.every(settings["system"].text if "system" in settings else catalogue.default("system"))
    values = {}
    for key, setting in settings.items():
        if key in known:
            try:
                values[key] = plain(read(known[key], setting.text))
            except ValueError as error:
                raise UsageError(f"{setting.where}: {key} = {setting.text}: {error}") from None
    return values
