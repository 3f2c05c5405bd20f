"""The evaluation engine in one process: exact numbers of items, resuming, damaged and foreign chunks."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluators import engine
from evaluators.engine import run_chunks
from util.distributed import Distributed
from util.errors import Preempted, RunFailed, UsageError


class Counter:
    """Squares of indices; remembers which were computed, and may fail or ask to stop after some chunks."""

    def __init__(self, fail_after: int | None = None, stop_after: int | None = None) -> None:
        self.indices: list[int] = []
        self.n_chunks = 0
        self.fail_after, self.stop_after = fail_after, stop_after

    def __call__(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.n_chunks == self.fail_after:
            raise RuntimeError("killed")
        self.n_chunks += 1
        self.indices += indices.tolist()
        squares = indices.double() ** 2
        pairs = torch.stack([indices, -indices], dim=1)
        return {"squares": squares, "pairs": pairs, "nfe": torch.tensor(100 + len(indices))}

    def should_stop(self) -> bool:
        return self.n_chunks == self.stop_after


def run(folder: Path, counter: Counter, n_items: int = 23, chunk_size: int = 4, **fingerprint: object):
    return run_chunks(
        folder / "numbers.npz", n_items, chunk_size, counter, fingerprint, Distributed(), "numbers",
        counter.should_stop,
    )  # fmt: skip


@pytest.mark.parametrize(("n_items", "chunk_size"), [(1, 1), (1, 5), (5, 5), (23, 4), (24, 4), (7, 1), (3, 100)])
def test_every_item_once_and_in_order(tmp_path: Path, n_items: int, chunk_size: int) -> None:
    counter = Counter()
    arrays = run(tmp_path, counter, n_items, chunk_size)
    assert counter.indices == list(range(n_items))
    assert set(arrays) == {"squares", "pairs", "nfe"}
    np.testing.assert_array_equal(arrays["squares"], np.arange(n_items) ** 2.0)
    np.testing.assert_array_equal(arrays["pairs"], np.stack([np.arange(n_items), -np.arange(n_items)], axis=1))
    assert arrays["squares"].dtype == np.float64
    assert arrays["pairs"].dtype == np.int64
    sizes = [min(chunk_size, n_items - start) for start in range(0, n_items, chunk_size)]
    np.testing.assert_array_equal(arrays["nfe"], [100 + size for size in sizes])
    assert [entry.name for entry in tmp_path.iterdir()] == ["numbers.npz"]


def test_a_complete_file_is_read_and_nothing_computed(tmp_path: Path) -> None:
    first = run(tmp_path, Counter(), seed=1)
    bytes_before = (tmp_path / "numbers.npz").read_bytes()
    counter = Counter()
    second = run(tmp_path, counter, seed=1)
    assert counter.indices == []
    assert set(first) == set(second)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    assert (tmp_path / "numbers.npz").read_bytes() == bytes_before


def test_bytes_do_not_depend_on_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "now", Counter())
    monkeypatch.setattr("time.time", lambda: 2e9)
    monkeypatch.setattr("time.localtime", lambda *_: (2033, 5, 18, 3, 33, 20, 2, 138, 0))
    run(tmp_path / "later", Counter())
    assert (tmp_path / "now/numbers.npz").read_bytes() == (tmp_path / "later/numbers.npz").read_bytes()


def test_resume_after_a_crash_does_only_what_is_missing(tmp_path: Path) -> None:
    crashed = Counter(fail_after=3)
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path, crashed)
    assert crashed.indices == list(range(12))
    rest = Counter()
    arrays = run(tmp_path, rest)
    assert rest.indices == list(range(12, 23))
    np.testing.assert_array_equal(arrays["squares"], np.arange(23) ** 2.0)


def test_stopping_keeps_chunks_and_says_so(tmp_path: Path) -> None:
    stopped = Counter(stop_after=2)
    with pytest.raises(Preempted, match="finished chunks are kept"):
        run(tmp_path, stopped)
    assert not (tmp_path / "numbers.npz").exists()
    rest = Counter()
    run(tmp_path, rest)
    assert stopped.indices + rest.indices == list(range(23))


def test_a_stop_after_the_last_chunk_does_not_lose_the_result(tmp_path: Path) -> None:
    assert run(tmp_path, Counter(stop_after=6)) is not None


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "one bit", "half renamed"])
def test_damaged_chunks_are_computed_anew(tmp_path: Path, damage: str) -> None:
    with pytest.raises(Preempted):
        run(tmp_path, Counter(stop_after=4))
    chunk = tmp_path / "numbers.chunks/00000001.npz"
    content = bytearray(chunk.read_bytes())
    if damage == "truncated":
        chunk.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        chunk.write_bytes(b"")
    elif damage == "garbage":
        chunk.write_bytes(b"not an archive at all")
    elif damage == "one bit":
        # Within the numbers of the first array, behind zip and npy headers.
        position = content.index(np.float64(25.0).tobytes())
        content[position] ^= 1
        chunk.write_bytes(content)
    else:
        chunk.rename(chunk.with_name(f".{chunk.name}.host.123.tmp"))
    rest = Counter()
    arrays = run(tmp_path, rest)
    assert rest.indices == [4, 5, 6, 7, *range(16, 23)]
    np.testing.assert_array_equal(arrays["squares"], np.arange(23) ** 2.0)
    assert [entry.name for entry in tmp_path.iterdir()] == ["numbers.npz"]


def test_a_damaged_merged_file_is_made_anew(tmp_path: Path) -> None:
    run(tmp_path, Counter())
    file = tmp_path / "numbers.npz"
    file.write_bytes(file.read_bytes()[:-40])
    counter = Counter()
    assert run(tmp_path, counter) is not None
    assert counter.indices == list(range(23))


@pytest.mark.parametrize(
    "changed", [{"checkpoint_step": 20}, {"n_items": 22}, {"chunk_size": 5}, {"checkpoint_step": 10, "extra": [1]}]
)
def test_chunks_of_other_settings_are_never_mixed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changed: dict
) -> None:
    with pytest.raises(Preempted):
        run(tmp_path, Counter(stop_after=3), checkpoint_step=10)
    counter = Counter()
    settings = {"n_items": 23, "checkpoint_step": 10, **changed}
    with caplog.at_level(logging.WARNING):
        arrays = run(tmp_path, counter, **settings)
    assert counter.indices == list(range(settings["n_items"]))
    np.testing.assert_array_equal(arrays["squares"], np.arange(settings["n_items"]) ** 2.0)
    name = next(key for key in changed if settings[key] != {"n_items": 23, "checkpoint_step": 10}.get(key))
    messages = [message for message in caplog.messages if "starting afresh" in message]
    assert len(messages) == 1
    assert name in messages[0]


def test_a_merged_file_of_other_settings_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(tmp_path, Counter(), seed=1)
    counter = Counter()
    with caplog.at_level(logging.WARNING):
        run(tmp_path, counter, seed=2)
    assert counter.indices == list(range(23))
    assert any("seed 1, now 2" in message for message in caplog.messages)


@pytest.mark.parametrize(("n_items", "chunk_size"), [(0, 4), (5, 0), (-1, 4)])
def test_nothing_to_do_is_a_usage_error(tmp_path: Path, n_items: int, chunk_size: int) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        run(tmp_path, Counter(), n_items, chunk_size)


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engine, "write_arrays", full)
    with pytest.raises(RunFailed, match=r"00000000\.npz: cannot be written: disk full"):
        run(tmp_path, Counter())


def test_a_chunk_that_vanishes_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "SECONDS_UNTIL_VISIBLE", 0.0)

    class Vanishing(Counter):
        def __call__(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
            (tmp_path / "numbers.chunks/00000000.npz").unlink(missing_ok=True)
            return super().__call__(indices)

    with pytest.raises(RunFailed, match=r"00000000\.npz is missing"):
        run(tmp_path, Vanishing())
    rest = Counter()
    run(tmp_path, rest)
    assert rest.indices == [0, 1, 2, 3]


def test_a_wrong_leading_dimension_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"numbers of a chunk of 2 items has shape \(3,\)"):
        run_chunks(
            tmp_path / "x.npz", 2, 2, lambda _: {"numbers": torch.zeros(3)}, {}, Distributed(), "x", lambda: False
        )
