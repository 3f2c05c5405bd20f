"""A configuration's written form gives it back, whatever the command line accepts: properties, not examples."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launch.command import Command
from main import OPTIONS, parse_config
from trainers.systems import SYSTEMS
from util.config import read_config_file
from util.config_file import parse_line
from util.files import write_text
from util.option import RUN, Option
from util.option_values import options_of, plain, read, written
from util.run_options import RunOptions

THE_SAME_EVERYWHERE = settings(
    derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
NETWORKS = [(system, network) for system, reads in SYSTEMS.items() for network in reads.networks]
AWKWARD = st.text(st.sampled_from("#;'\"=,[]~\\%$-/ \t\r\n\v\x1c\x85\xa0\u2028\ufeff\udc80aN1é😀"), max_size=8)
TEXTS = (
    AWKWARD
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
    | st.sampled_from(["", "true", "None", "[a]", "# no", '"', "it's", "~", "~/run #2", "~nobody-here/x", "C:\\new"])
    | st.sampled_from(["--seed", "--seed=4", "-cc", "include = x", "a, b", "'quoted'", '"quoted"', "1e400", "\ufeff"])
)


def texts(option: Option) -> st.SearchStrategy[str]:
    """Texts of an option's values, of which some are refused."""
    marks = option.metadata
    lowest = marks["minimum"] if marks["minimum"] is not None else marks["above"]
    whole = st.integers(None if lowest is None else int(lowest), marks["maximum"] and int(marks["maximum"]))
    if marks["choices"]:
        return st.sampled_from([written(choice) for choice in marks["choices"]])
    if option.kind is bool:
        return st.sampled_from(["true", "false", "True", "no", "1"])
    if option.kind is int:
        return whole.map(str) | st.sampled_from(["1e3", "1_000", " 7 ", "8."])
    if option.kind is float:
        return st.floats(lowest, marks["maximum"], allow_nan=False, allow_infinity=False).map(repr) | whole.map(str)
    if option.kind == int | str:
        return whole.map(str) | st.just("auto")
    if option.kind is str:
        return TEXTS
    return st.lists(st.integers(0, 300), max_size=5).map(lambda many: ",".join(map(str, many))) | st.just("[2, 4]")


def accepted(option: Option, text: str) -> bool:
    try:
        read(option, text)
    except ValueError:
        return False
    return True


@st.composite
def command_lines(draw: st.DrawFn, system: str, network: str) -> list[str]:
    """Flags of some of the options that a system with a network reads, with values that they allow."""
    words = [f"--system={system}", f"--name={network}"]
    options = [option for group in OPTIONS.groups(system, network) for option in options_of(group)]
    for option in draw(st.lists(st.sampled_from(options), max_size=12, unique_by=lambda option: option.flag)):
        if option.flag not in ("system", "name"):
            text = draw(texts(option).filter(lambda text, option=option: accepted(option, text)))
            words.append(f"--{option.flag}={text}")
    return words


@pytest.mark.parametrize(("system", "network"), NETWORKS)
@settings(THE_SAME_EVERYWHERE, max_examples=40)
@given(data=st.data())
def test_any_command_line(system: str, network: str, tmp_path: Path, data: st.DataObject) -> None:
    config = parse_config(data.draw(command_lines(system, network)))
    path = tmp_path / "config.txt"
    write_text(path, config.text())
    again = parse_config(["-cc", str(path)])
    assert again.flat() == config.flat()
    assert again.text() == config.text()
    assert config.difference(read_config_file(path, OPTIONS)) == []
    # And as the launcher reads it from a pipe.
    piped = dict(parse_line(line, "") for line in config.text().encode().decode().splitlines())
    assert Command((), piped)[RunOptions] == config[RunOptions]


@pytest.mark.parametrize(("system", "network"), NETWORKS)
@settings(THE_SAME_EVERYWHERE, max_examples=20)
@given(data=st.data())
def test_what_a_file_does_not_say_had_its_default(
    system: str, network: str, tmp_path: Path, data: st.DataObject
) -> None:
    config = parse_config(data.draw(command_lines(system, network)))
    changed = {option.flag for option in config.options() if config.flat()[option.flag] != plain(option.default)}
    unsaid = data.draw(st.sets(st.sampled_from(sorted(changed - {"system", "name"}) or ["seed"])))
    lines = [line for line in config.text().splitlines() if line.split(" ")[0] not in unsaid]
    write_text(tmp_path / "config.txt", "\n".join(lines))
    difference = config.difference(read_config_file(tmp_path / "config.txt", OPTIONS))
    defining = {option.flag for option in config.options() if option.effect is RUN}
    assert {entry.split(":")[0] for entry in difference} == unsaid & changed & defining
