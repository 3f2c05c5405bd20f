"""Finding broken image files before a run begins rather than in the middle of it."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import multiprocessing
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np

from util.data.image_file import BadImage, check_image
from util.data.image_folder import ImageFolder
from util.data.worker_process import begin_work, without_signals
from util.errors import RunFailed, UsageError
from util.files import replacing
from util.progress import Progress

logger = logging.getLogger(__name__)

N_NAMED = 5
# More than there may be cores: mostly they wait for a file system that may be far away.
_MOST_PROCESSES = 16
_FILES_WORTH_A_PROCESS = 2048
_FILES_AT_A_TIME = 256
_TRANSPARENT = np.uint64(1)
_Looked = tuple[list[np.uint64], list[BadImage]]


class ImageCheck:
    """A look at size, header and end of every file, piece by piece, so that others can wait for it and stay alive.

    Args:
        folders: the data sets.
        memory: file that remembers those that were good, by path, size and time of change, so that the next check
            passes over them; None for no such file.
        visible: whether to show how far it is.
    """

    def __init__(self, folders: Iterable[ImageFolder], memory: Path | None = None, visible: bool = True) -> None:
        self._files = [(folder, path) for folder in folders for path in folder.paths]
        self._memory = memory
        self._remembered = _read_memory(memory)
        self._good: list[np.uint64] = []
        self._bad: list[BadImage] = []
        self._progress = Progress(
            "checking images", len(self._files), unit="image", visible=visible and bool(self._files)
        )
        self._results = self._look_at_all()

    def _look_at_all(self) -> Iterator[_Looked]:
        pieces = range(0, len(self._files), _FILES_AT_A_TIME)
        n_processes = min(_MOST_PROCESSES, len(self._files) // _FILES_WORTH_A_PROCESS)
        if n_processes < 2:
            yield from (_look(self._files, self._remembered, piece) for piece in pieces)
            return
        # Processes, because threads that read small files spend their time on handing Python's lock around.
        inherited = (os.getpid(), self._files, self._remembered)
        with ProcessPoolExecutor(n_processes, multiprocessing.get_context("fork"), _begin, inherited) as processes:
            try:
                with without_signals():
                    results = processes.map(_look_at_inherited, pieces)
                yield from results
            except BrokenProcessPool:
                raise RunFailed("a process that checked images died, often for lack of memory") from None
            finally:
                processes.shutdown(wait=False, cancel_futures=True)

    def advance(self, seconds: float) -> bool:
        """Go on for about so long; whether there is more to do."""
        deadline = time.monotonic() + seconds
        for good, bad in self._results:
            self._good += good
            self._bad += bad
            self._progress.show(len(self._good) + len(self._bad))
            if time.monotonic() > deadline:
                return True
        self._progress.close()
        return False

    def finish(self) -> None:
        """Remember what was good, and say whether images may be transparent.

        Raises:
            UsageError: some files are broken; names them.
        """
        keys = np.sort(np.array(self._good, dtype=np.uint64))
        if self._memory is not None and self._files and not np.array_equal(keys, self._remembered):
            # It only saves time: a folder that cannot be written to is for others to complain of.
            with contextlib.suppress(OSError), replacing(self._memory) as temporary, temporary.open("wb") as file:
                np.save(file, keys)
        n_files, n_transparent = len(self._files), int((keys & _TRANSPARENT).sum())
        if n_transparent:
            logger.info("%d of %d images can be transparent: where they are, white shows", n_transparent, n_files)
        if len(self._bad) == 1:
            raise self._bad[0]
        if self._bad:
            named = "; ".join(f"{bad.path}: {bad.reason}" for bad in self._bad[:N_NAMED])
            more = f"; and {len(self._bad) - N_NAMED} more" if len(self._bad) > N_NAMED else ""
            cures = ", or ".join(dict.fromkeys(bad.cure for bad in self._bad))
            raise UsageError(f"{len(self._bad)} of {n_files} images cannot be used: {named}{more}: {cures} them")


def _look(files: Sequence[tuple[ImageFolder, Path]], remembered: np.ndarray, start: int) -> _Looked:
    """Keys of those files of a piece that are good, and what is wrong with the others."""
    good, bad = [], []
    for folder, path in files[start : start + _FILES_AT_A_TIME]:
        try:
            key = _key(folder, path)
            at = np.searchsorted(remembered, key)
            if at < len(remembered) and remembered[at] & ~_TRANSPARENT == key:
                good.append(remembered[at])
                continue
            size, transparent = check_image(path)
            if folder.require_size is not None:
                folder.require_size(path, size, folder.shape[1])
            good.append(key | _TRANSPARENT if transparent else key)
        except BadImage as error:
            bad.append(error)
    return good, bad


_inherited: tuple[Sequence[tuple[ImageFolder, Path]], np.ndarray]
"""In a process that checks: the files and what is remembered of them, too much to be sent."""


def _begin(parent: int, files: Sequence[tuple[ImageFolder, Path]], remembered: np.ndarray) -> None:
    global _inherited
    begin_work(parent)
    _inherited = (files, remembered)


def _look_at_inherited(start: int) -> _Looked:
    return _look(*_inherited, start)


def _key(folder: ImageFolder, path: Path) -> np.uint64:
    """What a file is remembered by; even, so that the last bit can say whether it may be transparent."""
    try:
        status = path.stat()
    except OSError as error:
        raise BadImage(path, f"cannot be read ({error.strerror})") from None
    rule = (folder.name, folder.shape[1]) if folder.require_size is not None else ()
    name = repr((str(path), status.st_size, status.st_mtime_ns, rule)).encode("utf-8", "surrogateescape")
    return np.uint64(int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big")) & ~_TRANSPARENT


def _read_memory(path: Path | None) -> np.ndarray:
    """Sorted keys, uint64 (N,); none where there is no such file."""
    with contextlib.suppress(OSError, ValueError, EOFError):
        keys = np.load(path, allow_pickle=False) if path is not None else None
        if isinstance(keys, np.ndarray) and keys.dtype == np.uint64 and keys.ndim == 1:
            return keys
    return np.empty(0, dtype=np.uint64)
