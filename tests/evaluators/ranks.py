"""Run a function on several ranks, each a process of its own."""

import multiprocessing
import os
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.patience import PATIENCE
from util.distributed import Distributed, join_group


def _rank(
    rank: int, world_size: int, port: int, function: Callable[..., Any], arguments: tuple[Any, ...], answer: Path
) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed = join_group(rank, rank, world_size, torch.device("cpu"), timeout_seconds=PATIENCE)
    try:
        result: Any = function(distributed, *arguments)
    except Exception as error:
        result = error
    answer.write_bytes(pickle.dumps(result))


def run_ranks(world_size: int, folder: Path, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """``function(distributed, *arguments)`` on every rank; what each returned or raised, in rank order.

    A rank that is killed is answered for by None.
    """
    if world_size == 1:
        try:
            return [function(Distributed(), *arguments)]
        except Exception as error:
            return [error]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.distributed", "tests.evaluators.fakes", "evaluators.evaluate"])
    answers = [folder / f"answer_{rank}_of_{world_size}.pickle" for rank in range(world_size)]
    for answer in answers:
        answer.unlink(missing_ok=True)
    processes = [
        context.Process(target=_rank, args=(rank, world_size, port, function, arguments, answers[rank]))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()
    return [pickle.loads(answer.read_bytes()) if answer.exists() else None for answer in answers]
