"""Configuration: precedence, types, errors that name file and line, and a written form that reads back."""

from pathlib import Path

import pytest

from evaluators.options import EvaluationOptions
from launch.command import resolve
from main import OPTIONS, parse_config
from models.ncsnpp_settings import NCSNppSettings
from trainers.cld.options import CldOptions
from trainers.options import OptimizationOptions, TrainingOptions
from util.command_line import make_parser
from util.config import Config, read_config_file
from util.data.options import DataOptions
from util.errors import UsageError
from util.run_options import RunOptions

CONFIGS = sorted((Path(__file__).parents[2] / "configs").rglob("*.txt"))


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_precedence_in_any_order_on_the_command_line(tmp_path: Path) -> None:
    common = write(tmp_path / "c.txt", "beta0 = 1\nbeta1 = 1\nm_inv = 1\n")
    special = write(tmp_path / "s.txt", "beta0 = 2\nbeta1 = 2\n")
    for argv in (["-cc", common, "-sc", special], ["-sc", special, "-cc", common]):
        process = parse_config([*argv, "--beta0", "3"])[CldOptions]
        assert (process.beta0, process.beta1, process.m_inv, process.gamma) == (3.0, 2.0, 1.0, 0.04)


def test_any_number_of_files(tmp_path: Path) -> None:
    """Later files win over earlier ones, -sc over -cc, flags over all; and main.py tells the launcher so."""
    for name in "abcd":
        values = {"beta0": "a", "beta1": "ab", "m_inv": "abc", "gamma": "abcd", "numerical_eps": "ac"}
        lines = [f"{key} = 0.{ord(name)}\n" for key, files in values.items() if name in files]
        write(tmp_path / f"{name}.txt", "".join(lines))
    a, b, c, d = (str(tmp_path / f"{name}.txt") for name in "abcd")
    for argv in (["-sc", c, f"--config={a}", "-sc", d, "-cc", b], ["-cc", a, "-cc", b, f"-sc={c}", "-sc", d]):
        flat = parse_config(argv).flat()
        assert [flat[key] for key in values] == [0.97, 0.98, 0.99, 0.1, 0.99]
        flat = parse_config([*argv, "--gamma", "7"]).flat()
        assert [flat[key] for key in values] == [0.97, 0.98, 0.99, 7.0, 0.99]
    assert resolve(argv).settings["gamma"] == "0.1"
    # What one of several includes is not lost either.
    write(tmp_path / "e.txt", "include = b.txt\nbeta0 = 2\n")
    flat = parse_config(["-cc", a, "-cc", str(tmp_path / "e.txt")]).flat()
    assert (flat["beta0"], flat["beta1"], flat["numerical_eps"]) == (2.0, 0.98, 0.97)


def run_folder(folder: Path, *argv: str) -> Config:
    """A run that the command line began; its configuration."""
    config = parse_config([*argv, "--workdir", str(folder)])
    folder.mkdir()
    write(folder / "config.txt", config.text(once=False))
    return config


@pytest.mark.parametrize("mode", ["continue", "eval", "sample"])
def test_an_earlier_run_says_how_it_was_configured(mode: str, tmp_path: Path) -> None:
    began = run_folder(tmp_path / "run", "--system", "indm", "--beta0", "3", "--overwrite", "--node_rank", "0")
    words = ["--workdir", str(tmp_path / "run"), "--mode", mode]
    config = parse_config(words)
    once = {"mode": mode, "overwrite": False, "node_rank": -1}
    assert config.flat() == {**began.flat(), **once}
    assert config.given == {"workdir", "mode"}  # an older snapshot may have been trained with other values
    special = write(tmp_path / "s.txt", "beta0 = 5\nlearning_rate = 1\n")
    flat = parse_config([*words, "-sc", special, "--learning_rate", "2"]).flat()
    assert (flat["system"], flat["beta0"], flat["learning_rate"]) == ("indm", 5.0, 2.0)
    assert parse_config([*words, "-cc", special]).flat()["system"] == "cld"
    (tmp_path / "run" / "config.txt").write_text("beta0 = four\n")
    with pytest.raises(UsageError, match=r"config.txt line 1: beta0 = four"):
        parse_config(words)


def test_an_earlier_run_that_has_been_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data is where the run's root says, but the run is where the command says."""
    (tmp_path / "there").mkdir()
    run_folder(tmp_path / "there" / "run")
    write(tmp_path / "there/run/config.txt", parse_config(["--root", "there", "--workdir", "run"]).text(once=False))
    (tmp_path / "there" / "run").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    run = parse_config(["--mode", "eval", "--workdir", "moved"])[RunOptions]
    assert (run.model_folder, run.path("data")) == (tmp_path / "moved", Path("there/data"))


def test_going_on_with_a_run_whose_configuration_nobody_says(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--mode continue: .* has no config.txt; give the settings .* with -cc"):
        parse_config(["--mode", "continue", "--workdir", str(tmp_path)])
    path = write(tmp_path / "c.txt", "beta0 = 1\n")
    assert parse_config(["--mode", "continue", "--workdir", str(tmp_path), "-cc", path]).flat()["beta0"] == 1.0


def test_published_forms(tmp_path: Path) -> None:
    path = write(
        tmp_path / "c.txt",
        "# Model\n[default]\nch_mult = 1,2,2\nis_image = False\nautocast_train=true\nn_train_iters = 8e5  # many\n",
    )
    config = parse_config(["--config", path, "--denoising", "false", "--eval_fid"])
    assert config.make(NCSNppSettings, in_channels=1, out_channels=1, image_size=64).ch_mult == (1, 2, 2)
    assert not config[DataOptions].is_image
    assert config[OptimizationOptions].autocast_train
    assert config[TrainingOptions].n_train_iters == 800_000
    assert not config[CldOptions].denoising
    assert config[EvaluationOptions].eval_fid


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_shipped_files_and_their_written_form(path: Path, tmp_path: Path) -> None:
    config = parse_config(["-cc", str(path), "--workdir", "w", "--seed", "3"])
    again = parse_config(["-cc", write(tmp_path / "config.txt", config.text())])
    assert again.flat() == config.flat()


BAD_FILES = {
    "beta_0 = 4": "unknown key 'beta_0'; did you mean 'beta0'",
    "beta0 = four": "beta0 = four: a number expected",
    "beta0 = -1": "at least 0",
    "beta0 = nan": "finite",
    "beta0 4": "write 'key = value'",
    "sde = ddpm": "one of cld, vpsde",
    "n_train_iters = 1.5": "whole number",
    "ch_mult = 1,a": "number expected",
    "denoising = maybe": "true or false",
    "beta0 = 1\nbeta0 = 2": "set in line 2 already",
}


@pytest.mark.parametrize(("text", "message"), BAD_FILES.items())
def test_bad_file_is_named_with_its_line(text: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "bad.txt", "# a comment\n" + text + "\n")
    with pytest.raises(UsageError) as error:
        parse_config(["-cc", path])
    line = 1 + len(text.splitlines())
    assert f"{path} line {line}:" in str(error.value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


BAD_ARGUMENTS = {
    "--bета 1": "unknown argument",
    "--m_in 4": "did you mean '--m_inv'",
    "stray": "unknown argument 'stray'",
    "--beta0": "expected one argument",
    "--mode trian": "one of train, continue, eval",
    "--seed -1": "at least 0",
    "--ema_rate 1.1": "at most 1",
    "--learning_rate 0": "more than 0",
    "-cc missing.txt": "no such file",
}


@pytest.mark.parametrize(("line", "message"), BAD_ARGUMENTS.items())
def test_bad_argument(line: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_config(line.split())
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_as_editors_and_shells_leave_it(encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte-order marks, ends of lines, quotes and ~."""
    monkeypatch.setenv("HOME", "/home/me")
    text = "beta0 = \"1\"\r\nworkdir = '~/my run #2'  # mine\r\ndata_location = C:\\new; no comment ; comment\r\n"
    (tmp_path / "c.txt").write_bytes((text + 'eval_folder = "é \\" #"').encode(encoding))
    flat = parse_config(["-cc", str(tmp_path / "c.txt")]).flat()
    assert (flat["beta0"], flat["workdir"], flat["data_location"]) == (1.0, "/home/me/my run #2", "C:\\new; no comment")
    assert flat["eval_folder"] == 'é " #'
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write(tmp_path / "home" / "included.txt", "beta1 = 2\n")
    write(tmp_path / "home" / "c.txt", "include = ~/included.txt\n")
    assert parse_config(["-cc", "~/c.txt", "--data_location=~"]).flat()["beta1"] == 2.0
    with pytest.raises(UsageError, match=r"--workdir ~nobody-here/x: no home folder is known for ~nobody-here"):
        parse_config(["--workdir", "~nobody-here/x"])


def test_binary_file(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(bytes(range(256)))
    with pytest.raises(UsageError, match="not a text file"):
        parse_config(["-cc", str(tmp_path / "x.txt")])


def test_help_explains_every_flag_with_its_default() -> None:
    config = parse_config([])
    text = make_parser(config.groups).format_help()
    assert all(f"--{name}" in text for name in config.flat())
    assert "learning rate after warm-up [0.0002]" in text


def test_difference_names_what_makes_another_run(tmp_path: Path) -> None:
    earlier = parse_config(["--workdir", "a", "--seed", "1"])
    path = tmp_path / "config.txt"
    path.write_text(earlier.text())
    now = parse_config(["--workdir", "b", "--seed", "2", "--log_freq", "7"])
    assert now.difference(read_config_file(path, OPTIONS)) == ["seed: 1 -> 2"]
    # What the file does not say had its default, also where the option is the system's or the network's.
    path.write_text("seed = 2\n")
    now = now.with_values(m_inv=3.0, n_channels=64)
    assert now.difference(read_config_file(path, OPTIONS)) == ["m_inv: 4.0 -> 3.0", "n_channels: 128 -> 64"]
