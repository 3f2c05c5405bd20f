"""Folders that a run cannot use are named before anything is started."""

from pathlib import Path

import pytest

from tests.system.command import run
from util.errors import UsageError
from util.files import check_usable
from util.run_log import RunLog


def unusable(tmp_path: Path) -> list[Path]:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "logs").touch()
    return [tmp_path / "file", tmp_path / "file" / "below", tmp_path / "link", tmp_path / "run", Path("/proc/run")]


def test_what_cannot_be_used(tmp_path: Path) -> None:
    for folder in unusable(tmp_path):
        with pytest.raises(UsageError, match="give a folder that can be written to") as caught:
            check_usable(folder)
        assert str(folder) in str(caught.value)
    check_usable(tmp_path / "new" / "below")
    assert not (tmp_path / "new").exists()


def test_a_command_in_such_a_folder_is_refused(tmp_path: Path) -> None:
    for folder in unusable(tmp_path)[1:3]:
        output = run(folder, expect=2, config="configs/smoke/tiny.txt", device="cpu")
        assert output.startswith(f"error: --workdir {folder}")


@pytest.mark.parametrize("end", [b"\xff", b"\xff\xfe\n", b'{"step": 3, "lo\xc3', b'{"step": 9}\n\x80\n'])
def test_bytes_that_are_no_text_at_the_end_of_a_log(end: bytes, tmp_path: Path) -> None:
    line = b'{"step": 2, "loss": 1.0}\n'
    (tmp_path / "metrics.jsonl").write_bytes(line + end)
    log = RunLog(tmp_path, active=True)
    log.begin(resumed_at=5)
    log.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == line
