"""Inside a rank: device, process group and signals; runs the mode, and always tears down."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist

from launch.agents.beat import AGENT_VARIABLE, live_with_agent
from launch.agents.meeting import torchrun_store
from launch.agents.ranks import LISTEN_VARIABLE, OWN_AGENT_VARIABLE
from launch.agents.reports import report_of, write_report
from launch.agents.restart import COUNTS, starters, starters_of_all
from launch.options import LaunchOptions
from launch.places.topology import RankPlace
from launch.waiting import Waiting
from util.distributed import Distributed, join_group
from util.errors import EXIT_FAILED, EXIT_FINISHED, EXIT_PREEMPTED, EXIT_USAGE, Preempted, UsageError
from util.lock import Lock, held
from util.stop import StopRequest

DETERMINISTIC_CUBLAS = ":4096:8"
"""A workspace with which cuBLAS gives the same bits each time (its documentation, "Results reproducibility")."""

Mode = Callable[[Distributed, StopRequest], None]


def run_rank(options: LaunchOptions, place: RankPlace, mode: Mode, lock: Lock | None = None) -> NoReturn:
    """Run the mode as one rank of the group, which holds the lock meanwhile, and leave with its exit code.

    The mode takes the stop signals (``stop.listen``) when it has something to save; before, they end the process with
    exit code 75.

    The process leaves at once (``os._exit``): after a failure an orderly shutdown would wait for a collective that the
    others never join, and after success for the store of a rank 0 that is already gone.
    """
    live_with_agent(options.rank_timeout)
    stop = StopRequest()
    try:
        settle_arithmetic(options)
        device = choose_device(options.device, place, options.ranks_per_gpu)
        distributed = join_group(
            place.rank,
            place.local_rank,
            place.world_size,
            device,
            options.collective_timeout,
            _store(options, place),
            shares_device=options.ranks_per_gpu > 1,
        )
        with _holding(lock, distributed, options):
            mode(distributed, stop)
        distributed.barrier()
    except Preempted:
        with contextlib.suppress(RuntimeError):  # all is on disk, even when another rank is gone already
            distributed.barrier()
        _leave(EXIT_PREEMPTED)
    except Exception as error:
        report = report_of(error, place.rank)
        if not write_report(report):
            print(report.text(), file=sys.stderr, flush=True)
        _leave(EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED)
    _leave(EXIT_FINISHED)


@contextlib.contextmanager
def _holding(lock: Lock | None, distributed: Distributed, options: LaunchOptions) -> Iterator[None]:
    """Rank 0 holds the lock; all ranks raise UsageError where another command does."""
    with contextlib.ExitStack() as stack:
        if lock is not None:
            names = starters_of_all(distributed.gather(starters()))
            starts = {name: (names[name], os.environ.get(name, "0")) for name in COUNTS if names[name]}
            distributed.from_main(lambda: stack.enter_context(held(lock, options.node_timeout, starts)))
        yield


def settle_arithmetic(options: LaunchOptions) -> None:
    """Which algorithms this process may compute with; before it first uses a GPU."""
    if options.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", DETERMINISTIC_CUBLAS)
        torch.use_deterministic_algorithms(True)
    # Training may have TF32 (--tf32); PyTorch's default has it in convolutions everywhere.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = options.cudnn_benchmark and not options.deterministic


def choose_device(wanted: str, place: RankPlace, ranks_per_gpu: int = 1) -> torch.device:
    """The device of a rank: consecutive ranks of a node share one where there are several for each GPU.

    Raises:
        UsageError: GPUs are wanted but there are too few of them.
    """
    n_devices = torch.cuda.device_count() if wanted != "cpu" else 0
    if wanted == "cuda" and n_devices == 0:
        raise UsageError("--device cuda, but torch sees no GPU here; use --device cpu or check the driver")
    if n_devices == 0:
        return torch.device("cpu")
    if n_devices == 1 and OWN_AGENT_VARIABLE in os.environ:
        # The scheduler gave each task its own GPU, which is the only one that the task sees.
        torch.cuda.set_device(0)
        return torch.device("cuda", 0)
    if place.local_world_size > ranks_per_gpu * n_devices:
        raise UsageError(
            f"{place.local_world_size} ranks on this node but only {n_devices} GPUs; lower --n_gpus_per_node, or let "
            "ranks share GPUs with --ranks_per_gpu, which is for trials"
        )
    index = place.local_rank // ranks_per_gpu
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _store(options: LaunchOptions, place: RankPlace) -> dist.Store | None:
    """Where the ranks meet: at the socket that the agent opened, or at torchrun's store."""
    timeout = timedelta(seconds=options.collective_timeout)
    if place.world_size == 1:
        return None
    if AGENT_VARIABLE not in os.environ:
        waiting = Waiting(options.rendezvous_timeout, place.went_by)
        return torchrun_store(place, waiting, options.collective_timeout)
    descriptor = os.environ.get(LISTEN_VARIABLE)
    return dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=place.rank == 0,
        timeout=timeout,
        wait_for_workers=False,
        master_listen_fd=int(descriptor) if descriptor is not None else None,
    )


def _leave(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # the terminal may be gone
            stream.flush()
    os._exit(code)
