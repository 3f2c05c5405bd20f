"""What a system reads: help that fits, options of others refused by name, files that include files."""

from pathlib import Path

import pytest

from main import OPTIONS, parse_config
from tests.configuration import configured
from trainers.scoreflow.options import ScoreFlowOptions
from trainers.system import load
from trainers.systems import SYSTEMS
from util.errors import UsageError
from util.option import Effect
from util.option_values import flags_of

UNREAD = {
    "cld": "gamma_min", "scoreflow": "m_inv", "idode": "sigma_max", "ddpm": "beta0", "hsivi": "learning_rate",
    "indm": "skip_type",
}  # fmt: skip


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as left:
        parse_config(words)
    assert left.value.code == 0
    return capsys.readouterr().out


def test_help_is_two_screens_and_says_where_to_read_on(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "--help")
    assert len(text.splitlines()) <= 60
    assert all(system.summary in text for system in SYSTEMS.values())
    assert "--system NAME --help" in text


@pytest.mark.parametrize("system", SYSTEMS)
def test_help_of_a_system_has_what_it_reads_and_nothing_else(system: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "--system", system, "--help")
    assert all(f"--{flag} " in text for flag in configured(system=system).flat())
    assert f"--{UNREAD[system]} " not in text
    everything = printed(capsys, "--help", "all")
    assert all(f"--{flag} " in everything for flag in OPTIONS.every(system))


@pytest.mark.parametrize("system", SYSTEMS)
def test_unread_and_mistyped_options_are_refused_by_name(system: str) -> None:
    with pytest.raises(UsageError, match=f"--{UNREAD[system]} is not read by --system {system}"):
        parse_config(["--system", system, f"--{UNREAD[system]}", "1"])
    with pytest.raises(UsageError, match="did you mean '--weight_decay'"):
        parse_config(["--system", system, "--weight_deca", "1"])


def test_unread_options_of_a_file_are_said_once(tmp_path: Path) -> None:
    path = tmp_path / "config.txt"
    path.write_text("system = ddpm\nbeta0 = 3\nm_inv = 4.0\nsigma_min = 0.5\n")
    config = parse_config(["-cc", str(path)])
    # m_inv has its default, as files from before options were sorted do.
    assert config.notes == ("the files give 2 options that --system ddpm does not read: beta0, sigma_min",)


def test_options_of_a_network_belong_to_it() -> None:
    with pytest.raises(UsageError, match="--ch_mult is not read by --system cld with this --name"):
        parse_config(["--name", "mlp", "--ch_mult", "1,2"])
    with pytest.raises(UsageError, match="--name vdm_unet is no network of --system cld; use ncsnpp or mlp"):
        parse_config(["--name", "vdm_unet"])


def test_keys_of_published_settings_with_one_value_are_accepted_and_shown_nowhere() -> None:
    config = parse_config(["--skip_rescale", "true", "--resblock_type=biggan"])
    assert "skip_rescale" not in config.flat()
    with pytest.raises(UsageError, match="--resblock_type ddpm: only biggan is known here"):
        parse_config(["--resblock_type", "ddpm"])


def test_a_file_includes_another_and_wins_over_it(tmp_path: Path) -> None:
    (tmp_path / "base.txt").write_text("system = scoreflow\nbeta0 = 1\nbeta1 = 2\n")
    (tmp_path / "middle.txt").write_text("# a comment\ninclude = base.txt\nbeta1 = 3\n")
    (tmp_path / "top.txt").write_text("include = middle.txt\nbeta1 = 4\n")
    options = parse_config(["-cc", str(tmp_path / "top.txt")])[ScoreFlowOptions]
    assert (options.beta0, options.beta1) == (1.0, 4.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("include = nothing.txt\n", "no such file"),
        ("include = top.txt\n", "includes this one"),
        ("beta0 = 1\ninclude = base.txt\n", "first setting"),
    ],
)
def test_includes_that_cannot_be(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "base.txt").write_text("beta0 = 1\n")
    (tmp_path / "top.txt").write_text(text)
    with pytest.raises(UsageError, match=message):
        parse_config(["-cc", str(tmp_path / "top.txt")])


@pytest.mark.parametrize("system", SYSTEMS)
def test_places_of_a_system_are_there_and_no_flag_is_read_twice(system: str) -> None:
    found = SYSTEMS[system]
    for place in (found.check, found.build, *found.importers.values(), *([found.settle] if found.settle else [])):
        assert callable(load(place))
    for network in found.networks:
        flags: list[str] = []
        for group in OPTIONS.groups(system, network):
            flags += flags_of(group)
        assert len(flags) == len(set(flags))


def test_every_option_says_what_another_value_means() -> None:
    for system in SYSTEMS:
        for option in configured(system=system).options():
            assert isinstance(option.effect, Effect)
            assert not (option.metadata["only_trains"] and option.effect is not Effect.RUN)
