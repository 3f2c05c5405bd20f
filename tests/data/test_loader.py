import contextlib
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from tests.patience import PATIENCE, wait_for
from tests.spelling import batch_indices, training_batches
from util.data import loader
from util.data.dataset import open_dataset
from util.data.image_array import ImageArray
from util.errors import RunFailed, UsageError

ROOT = Path(__file__).parents[2]


def numbered_images(n):
    """Images that say which one they are in their left half, and nothing in their right half."""
    images = torch.zeros(n, 1, 2, 4, dtype=torch.uint8)
    images[:, :, :, :2] = torch.arange(1, n + 1, dtype=torch.uint8)[:, None, None, None]
    return ImageArray("numbered", images)


def batches(dataset, **changes):
    settings = {
        "seed": 1,
        "first_step": 0,
        "total_batch_size": 24,
        "rank": 0,
        "world_size": 1,
        "n_micro_batches": 1,
        "n_workers": 0,
        "device": torch.device("cpu"),
        "random_flip": False,
    }
    return training_batches(dataset, **{**settings, **changes})


def take(n_steps, dataset, **changes):
    """Data and positions of some steps, the micro batches of each laid end to end."""
    source = batches(dataset, **changes)
    steps = [next(source) for _ in range(n_steps)]
    source.close()
    return [(torch.cat([part.data for part in step]), torch.cat([part.positions for part in step])) for step in steps]


def assert_equal_steps(ours, theirs):
    assert len(ours) == len(theirs)
    for (data, positions), (other_data, other_positions) in zip(ours, theirs, strict=True):
        assert torch.equal(data, other_data)
        assert torch.equal(positions, other_positions)


def workers():
    return multiprocessing.active_children()


def test_a_step_reads_its_global_batch():
    dataset = numbered_images(100)
    for step, (data, positions) in enumerate(take(6, dataset)):
        assert positions.dtype == torch.int64
        assert positions.tolist() == list(range(24 * step, 24 * step + 24))
        np.testing.assert_array_equal(data[:, 0, 0, 0].numpy() - 1, batch_indices(1, step, 24, 100))


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("n_micro_batches", [1, 2, 3])
def test_ranks_and_micro_batches_share_out_the_same_batch(world_size, n_micro_batches):
    dataset = numbered_images(100)
    total = 72
    whole = take(4, dataset, random_flip=True, total_batch_size=total)
    sizes = {"world_size": world_size, "n_micro_batches": n_micro_batches, "total_batch_size": total}
    parts = [take(4, dataset, rank=rank, random_flip=True, **sizes) for rank in range(world_size)]
    together = [tuple(map(torch.cat, zip(*step, strict=True))) for step in zip(*parts, strict=True)]
    assert_equal_steps(together, whole)
    step = next(batches(dataset, rank=world_size - 1, **sizes))
    assert [len(part.data) for part in step] == [total // world_size // n_micro_batches] * n_micro_batches


def test_a_resumed_run_reads_what_was_to_come():
    dataset = numbered_images(50)
    whole = take(7, dataset, random_flip=True)
    assert_equal_steps(take(4, dataset, first_step=3, random_flip=True), whole[3:])


def test_flips_depend_on_seed_and_position_alone():
    dataset = numbered_images(50)
    flipped = torch.cat([data[:, 0, 0, 0] == 0 for data, _ in take(100, dataset, random_flip=True)])
    n = len(flipped)
    assert abs(flipped.float().mean() - 0.5) < 4 * 0.5 / n**0.5
    for data, _ in take(3, dataset, random_flip=True):
        for image in data[:, 0]:
            left, right = image[:, :2], image[:, 2:]
            assert (left == 0).all() != (right == 0).all()
    other = torch.cat([data[:, 0, 0, 0] == 0 for data, _ in take(100, dataset, random_flip=True, seed=2)])
    assert not torch.equal(flipped, other)


def test_published_order():
    dataset = numbered_images(24)
    first, second = take(2, dataset, one_order=True)
    assert torch.equal(first[0], second[0])


def test_toy_points_are_never_read_twice():
    dataset = open_dataset("diamond", "train", "", 0, 0, seed=0)
    points = torch.cat([data for data, _ in take(5, dataset)])
    assert len(points.unique(dim=0)) == 5 * 24


@pytest.mark.parametrize("n_workers", [1, 2])
def test_workers_read_the_same_batches_and_end_with_the_loader(n_workers):
    dataset = numbered_images(50)
    options = {"random_flip": True, "n_micro_batches": 2}
    expected = take(9, dataset, **options)
    source = batches(dataset, n_workers=n_workers, **options)
    steps = [next(source) for _ in range(9)]
    assert len(workers()) == n_workers
    source.close()
    assert workers() == []
    got = [(torch.cat([p.data for p in step]), torch.cat([p.positions for p in step])) for step in steps]
    assert_equal_steps(got, expected)


def test_a_loader_that_was_never_read_starts_nothing():
    source = batches(numbered_images(5), n_workers=2)
    assert workers() == []
    source.close()


def test_the_random_state_of_the_run_is_left_alone():
    before = torch.get_rng_state()
    take(2, numbered_images(50), n_workers=1, random_flip=True)
    assert torch.equal(torch.get_rng_state(), before)


def take_many(source):
    for _ in range(50):
        next(source)


def test_workers_ignore_signals():
    source = batches(numbered_images(50), n_workers=2)
    next(source)
    before = workers()
    # A process of its own sends them, as a scheduler does: SIGTERM from the rank itself is how it ends its workers.
    for name in ("TERM", "INT", "HUP", "USR1", "USR2"):
        subprocess.run(["kill", f"-{name}", *(str(worker.pid) for worker in before)], check=True)
    time.sleep(0.3)
    take_many(source)
    assert workers() == before
    source.close()


def test_a_worker_that_dies_ends_the_run_with_one_line():
    source = batches(numbered_images(50), n_workers=1)
    next(source)
    workers()[0].kill()
    # What the worker had read ahead may still come.
    with pytest.raises(RunFailed, match="worker") as error:
        take_many(source)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("n_workers", [0, 2])
def test_a_damaged_file_is_one_line(tmp_path, n_workers):
    (tmp_path / "train").mkdir()
    for row in range(24):
        Image.fromarray(np.full((4, 4, 3), row, dtype=np.uint8)).save(tmp_path / "train" / f"{row:02d}.png")
    (tmp_path / "train" / "13.png").write_bytes(b"nothing")
    dataset = open_dataset("folder", "train", tmp_path, 4, 3, seed=0)
    with pytest.raises(UsageError) as error:
        next(batches(dataset, n_workers=n_workers))
    assert "13.png" in str(error.value)
    assert "\n" not in str(error.value)
    gc.collect()
    assert workers() == []


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"world_size": 5}, "multiple of 5"),
        ({"n_micro_batches": 7}, "multiple of 7"),
        ({"total_batch_size": 0}, "batch size of 0"),
    ],
)
def test_sizes_that_do_not_divide_are_refused_at_once(changes, word):
    with pytest.raises(UsageError, match=word) as error:
        batches(numbered_images(5), **changes)
    assert "\n" not in str(error.value)


def test_flips_of_points_are_refused_at_once():
    with pytest.raises(UsageError, match="random_flip"):
        batches(open_dataset("diamond", "train", "", 0, 0, seed=0), random_flip=True)


HAND_OVER = """
import sys, torch
from util.data.image_array import ImageArray
from tests.spelling import training_batches
from util.errors import RunFailed
dataset = ImageArray("large", torch.zeros(8, 3, 256, 256, dtype=torch.uint8))
source = training_batches(dataset, seed=0, first_step=0, total_batch_size=8, rank=0, world_size=1,
    n_micro_batches=1, n_workers=2, device=torch.device("cpu"), random_flip=True)
try:
    for _ in range(8):
        next(source)
except RunFailed as error:
    print(error)
    sys.exit(1)
"""


def hand_over_failure(*before, **variables):
    """What a loader says in a process that cannot hand batches over."""
    found = subprocess.run(
        [*before, sys.executable, "-c", HAND_OVER], cwd=ROOT, env={**os.environ, **variables}, text=True,
        capture_output=True, timeout=300,
    )  # fmt: skip
    assert found.returncode == 1, found
    assert found.stderr == ""
    (message,) = found.stdout.splitlines()
    return message


def test_a_temporary_folder_of_too_long_a_name_is_one_line(tmp_path):
    folder = tmp_path / ("x" * 127)
    folder.mkdir()
    message = hand_over_failure(TMPDIR=str(folder))
    assert "AF_UNIX path too long" in message
    assert f"sockets are made in {folder}: set TMPDIR to a folder" in message


def with_shared_memory(mount):
    """A command that runs another with a /dev/shm of its own."""
    words = ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh"]
    if subprocess.run([*words, "true"], capture_output=True).returncode != 0:
        pytest.skip("unshare cannot make a mount namespace: it needs root on Linux")
    return words


@pytest.mark.parametrize("options", ["size=1m", "size=1m,ro"])
def test_too_little_shared_memory_is_one_line(options):
    message = hand_over_failure(*with_shared_memory(f"mount -t tmpfs -o {options} tmpfs /dev/shm"))
    assert "data workers cannot hand over their batches" in message
    assert "of 1 MiB are free in /dev/shm: give it more (in a container --ipc host, or --shm-size 8g)" in message


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("Too many open files. Communication with the\n workers is no longer possible"), "ulimit -n"),
        (FileNotFoundError(2, "No such file or directory", f"{tempfile.gettempdir()}/pymp-1/listener-1"), "TMPDIR"),
        (ConnectionRefusedError(111, "Connection refused"), "died"),
        (RuntimeError("DataLoader worker (pid(s) 77) exited unexpectedly"), "died"),
    ],
)
def test_what_else_keeps_a_batch_from_being_taken(error, words):
    def source():
        raise error
        yield

    with pytest.raises(RunFailed, match=words) as failed:
        loader._next_from_workers(source())
    assert "\n" not in str(failed.value)


SCRIPT = """
import sys, torch, psutil
from util.data.dataset import open_dataset
from tests.spelling import training_batches
dataset = open_dataset("digits", "train", "", 8, 1, 0)
source = training_batches(dataset, seed=0, first_step=0, total_batch_size=8, rank=0, world_size=1,
    n_micro_batches=1, n_workers=2, device=torch.device("cpu"), random_flip=True)
next(source)
print(*(child.pid for child in psutil.Process().children()), flush=True)
"""


def run_script(rest):
    command = [sys.executable, "-c", SCRIPT + rest]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    return process, [int(pid) for pid in process.stdout.readline().split()]


def wait_until_gone(pids):
    wait_for(lambda: not any(map(runs, pids)), f"the end of {pids}")


def runs(pid):
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


@pytest.mark.parametrize("rest", ["", "raise SystemExit(0)", "source.close()"])
def test_a_process_that_ends_with_the_loader_open_does_not_hang(rest):
    process, pids = run_script(rest)
    assert len(pids) == 2
    assert process.wait(timeout=PATIENCE) == 0
    process.stdout.close()
    wait_until_gone(pids)


def test_workers_die_with_a_killed_parent():
    process, pids = run_script("import time; time.sleep(3600)")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    wait_until_gone(pids)


@dataclass(frozen=True)
class Broken:
    """A data set with a mistake in its code."""

    name: str = "broken"
    shape: tuple = (2,)
    is_image: bool = False
    length: int = 50

    def read(self, indices):
        raise OSError(f"a mistake in the code that reads {indices}")


@pytest.mark.parametrize("n_workers", [0, 1])
def test_other_errors_keep_their_kind_and_place(n_workers):
    with pytest.raises(OSError, match="a mistake in the code"):
        next(batches(Broken(), n_workers=n_workers))
