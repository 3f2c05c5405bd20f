"""A lock: one holds it, the second is told who, and what a gone owner has left is taken over."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.patience import PATIENCE, wait_for
from util import lock as locks
from util.errors import UsageError
from util.lock import Lock, clear, evaluation_lock, held, refuse_where_held, training_lock

LONG = 3600.0
"""Seconds for which nobody waits here."""
ROOT = Path(__file__).parents[2]
HOLDER = """
import sys
from pathlib import Path
from util.lock import held, training_lock
with held(training_lock(Path(sys.argv[1])), 3600.0, {"STARTER": (["job 7"], "0")}):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def lock(tmp_path: Path) -> Lock:
    return training_lock(tmp_path)


@contextmanager
def another_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of training."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def take(lock: Lock, timeout: float = LONG, **starts: Any) -> None:
    with held(lock, timeout, starts):
        pass


def test_it_is_released_whatever_happens(lock: Lock) -> None:
    def fail() -> None:
        with held(lock, LONG, {}):
            assert lock.path.exists()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(lock.path.parent.iterdir()) == []
    take(lock)


def test_the_second_is_told_of_the_first(lock: Lock, tmp_path: Path) -> None:
    with another_process(tmp_path) as process:
        before = lock.path.read_text().splitlines()[0]
        for attempt in (lambda: take(lock), lambda: refuse_where_held(tmp_path, LONG, "wait")):
            with pytest.raises(UsageError, match=rf"process {process.pid} on \S+ \(started \d{{4}}-") as caught:
                attempt()
            assert "\n" not in str(caught.value)
        assert lock.path.read_text().splitlines()[0] == before
        take(evaluation_lock(tmp_path, "eval"))  # which is another thing
        process.communicate("")
    assert not lock.path.exists()
    take(lock)


def test_evaluations_of_one_folder(tmp_path: Path) -> None:
    one = evaluation_lock(tmp_path, "eval/a")
    assert evaluation_lock(tmp_path, "./eval//a/").path == one.path
    assert evaluation_lock(tmp_path, "eval_a").path != one.path
    assert evaluation_lock(tmp_path, "../../x").path.parent == one.path.parent


def test_a_killed_owner_is_replaced_at_once(lock: Lock, tmp_path: Path) -> None:
    with another_process(tmp_path) as process:
        process.kill()
        process.wait()
        assert lock.path.exists()
        refuse_where_held(tmp_path, LONG, "wait")
        assert not lock.path.exists()
    with another_process(tmp_path) as process:
        process.kill()
        wait_for(lambda: locks._started(process.pid) == "", "its end")  # as nobody has waited for it, a zombie
        take(lock)


def changed(lock: Lock, **fields: Any) -> None:
    """Have the owner of the lock be another; the file stays the same."""
    line, _, count = lock.path.read_text().partition("\n")
    text = json.dumps({**json.loads(line), **fields}) + "\n" + count
    with lock.path.open("r+") as file:
        file.write(text)
        file.truncate()


@pytest.mark.parametrize("fields", [{"started": "1"}, {"pid": 2**22 + 1}])
def test_another_process_of_the_same_number(fields: dict[str, Any], lock: Lock) -> None:
    os.close(_left(lock))
    changed(lock, **fields)
    take(lock)


def _left(lock: Lock) -> int:
    """A lock that nobody gives signs of life of."""
    lock.path.parent.mkdir(parents=True, exist_ok=True)
    return locks._make(lock.path, locks.this_process(lock.does, {"STARTER": (["job 7"], "0")}))


ELSEWHERE = {"machine": "another boot, another namespace", "host": "node7", "token": "theirs"}


@pytest.mark.parametrize("fields", [ELSEWHERE, {**ELSEWHERE, "host": locks.socket.gethostname()}, {"machine": ""}])
def test_a_silent_owner_elsewhere_is_replaced_after_the_time_out(fields: dict[str, Any], lock: Lock) -> None:
    """Whatever its host is called: containers share a name, and not their processes."""
    os.close(_left(lock))
    changed(lock, **fields)
    take(lock, 0.5)


def test_an_owner_elsewhere_that_gives_signs_of_life(lock: Lock, tmp_path: Path) -> None:
    descriptor = _left(lock)
    changed(lock, **ELSEWHERE)
    ended = threading.Event()
    owner = locks._read(lock.path)
    assert owner is not None
    beat = threading.Thread(target=locks._beat, args=(lock.path, owner[0], descriptor, ended))
    beat.start()
    try:
        for attempt in (lambda: take(lock), lambda: refuse_where_held(tmp_path, LONG, "wait")):
            with pytest.raises(UsageError, match="node7"):
                attempt()
    finally:
        ended.set()
        beat.join()
    assert locks._token(lock.path) == "theirs"


@pytest.mark.parametrize(
    ("starts", "waits"),
    [
        ({"STARTER": (["job 7"], "1")}, False),  # started again by the same: it knows that its first start has ended
        ({"STARTER": (["job 7"], "0")}, True),  # another part of the same start
        ({"STARTER": (["job 8"], "1")}, True),
        ({}, True),
    ],
)
def test_a_requeued_job_does_not_wait_for_itself(starts: Any, waits: bool, lock: Lock) -> None:
    os.close(_left(lock))
    changed(lock, **ELSEWHERE)
    slept: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(locks.time, "sleep", lambda seconds: slept.append(seconds))
        take(lock, 0.2, **starts)
    assert bool(slept) == waits


def test_a_restart_waits_for_the_start_before_it_to_end(lock: Lock, tmp_path: Path) -> None:
    with another_process(tmp_path) as process:
        ending = threading.Timer(0.5, process.kill)
        ending.start()
        take(lock, PATIENCE, STARTER=(["job 7"], "1"))
        ending.join()


def test_a_copy_of_a_folder_holds_no_lock(tmp_path: Path) -> None:
    with another_process(tmp_path / "run"):
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        take(training_lock(tmp_path / "copy"))
        (tmp_path / "run").rename(tmp_path / "moved")
        with pytest.raises(UsageError, match="in use"):
            take(training_lock(tmp_path / "moved"))


LEFT: dict[str, Callable[[Path], object]] = {
    "empty": Path.touch,
    "cut short": lambda path: path.write_text('{"token": "x", "pi'),
    "no text": lambda path: path.write_bytes(b"\xff\x00\n"),
    "a list": lambda path: path.write_text("[]\n0\n"),
    "of a later version": lambda path: path.write_text('{"token": "x", "inode": 1, "more": 2}\n0\n'),
}


@pytest.mark.parametrize("kind", LEFT)
def test_what_cannot_be_read_is_replaced_after_the_time_out(kind: str, lock: Lock) -> None:
    lock.path.parent.mkdir(parents=True)
    LEFT[kind](lock.path)
    take(lock, 0.5)
    assert list(lock.path.parent.iterdir()) == []


def test_of_many_that_take_over_at_once_one_holds_it(lock: Lock) -> None:
    os.close(_left(lock))
    changed(lock, pid=2**22 + 1)
    inside, most, refused = [0], [0], []
    together = threading.Barrier(8)

    def contend() -> None:
        together.wait()
        try:
            with held(lock, LONG, {}):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                done.wait()
                inside[0] -= 1
        except UsageError as error:
            refused.append(str(error))

    done = threading.Event()
    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(refused) == 7, "seven refusals", explain=lambda: str(most))
    done.set()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_who_deletes_the_logs_does_not_free_the_lock(tmp_path: Path) -> None:
    with another_process(tmp_path):
        shutil.rmtree(tmp_path / "logs")
        wait_for(training_lock(tmp_path).path.exists, "the lock to be there again")
        with pytest.raises(UsageError, match="in use"):
            take(training_lock(tmp_path))


def test_a_process_that_has_lost_its_lock_ends(lock: Lock, tmp_path: Path) -> None:
    """It stood still until another one took over, and is not to write any more."""
    with another_process(tmp_path) as process:
        changed(lock, token="of another")
        assert process.wait(PATIENCE) == 1
        assert locks._token(lock.path) == "of another"


def test_locks_of_killed_processes_are_cleared(lock: Lock, tmp_path: Path) -> None:
    os.close(_left(lock))
    changed(lock, started="1")
    alive = evaluation_lock(tmp_path, "eval")
    os.close(_left(alive))
    clear(tmp_path)
    assert list(lock.path.parent.iterdir()) == [alive.path]


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", Path("/proc/scorefleet")):
        with pytest.raises(UsageError, match="cannot be written"):
            take(training_lock(folder))
