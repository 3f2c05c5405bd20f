"""Configuration: precedence, types, errors that name file and line, and a written form that reads back."""

from pathlib import Path

import pytest

from evaluators.options import EvaluationOptions
from main import OPTIONS, parse_config
from models.ncsnpp_settings import NCSNppSettings
from trainers.cld.options import CldOptions
from trainers.options import OptimizationOptions, TrainingOptions
from util.command_line import make_parser
from util.config import read_config_file
from util.data.options import DataOptions
from util.errors import UsageError

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
