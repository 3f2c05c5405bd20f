"""What ``launch doctor`` looks at, each check on every node or rank, the finding the same on all of them."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from launch.agents.fingerprint import code_versions
from util.data.dataset import SPLITS, Dataset, open_dataset, prepare_dataset
from util.data.hand_over import BATCHES_AHEAD, MORE_MEMORY, SHARED_MEMORY, try_socket
from util.data.inspection import check_images, contents, in_words
from util.data.options import DataOptions
from util.distributed import Distributed
from util.files import write_text
from util.run_options import RunOptions
from util.versions import versions

OK, WARNING, FAULT = "ok", "warning", "fault"
SIZES = (1 << 12, 1 << 20, 1 << 24)
"""Bytes of the all-reduces: latency, a small layer, a large bucket of gradients."""
SECONDS_PER_SIZE = 1.5
SHARED_FOLDER_SECONDS = 10.0
"""A network file system may show a new file to other nodes only after its cache has expired."""
CONNECT_SECONDS = 5.0
SKEW_WARNING_SECONDS, SKEW_FAULT_SECONDS = 1.0, 300.0
FREE_WARNING_GIB, FREE_FAULT_GIB = 20.0, 1.0


@dataclass(frozen=True)
class Finding:
    """The result of one check: "ok", "warning" or "fault", and what was seen."""

    check: str
    verdict: str
    text: str


def on_each_node(distributed: Distributed, look: Callable[[], Any]) -> tuple[dict[str, Any], list[str]]:
    """What ``look`` returns on the first rank of each node, and the errors where it raises; on every rank.

    An error stays with its node: the other ranks must not wait for one that left a check early.
    """
    seen: tuple[str, Any, str] | None = None
    if distributed.local_rank == 0:
        place = f"{socket.gethostname()} (rank {distributed.rank})"
        try:
            seen = (place, look(), "")
        except Exception as error:
            seen = (place, None, f"{place}: {' '.join(str(error).split()) or type(error).__name__}")
    answers = [answer for answer in distributed.gather(seen) if answer is not None]
    results = {place: result for place, result, error in answers if not error}
    return results, [error for _, _, error in answers if error]


def check_devices(distributed: Distributed) -> Finding:
    """Ranks and their devices, each device with one rank only."""
    device = distributed.device
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        key = f"{socket.gethostname()} {device}"
    else:
        name, key = f"CPU, {torch.get_num_threads()} threads", f"rank {distributed.rank}"
    everyone = distributed.gather((socket.gethostname(), name, key))
    counts: dict[tuple[str, str], int] = {}
    for host, kind, _ in everyone:
        counts[host, kind] = counts.get((host, kind), 0) + 1
    text = "; ".join(f"{host}: {count} x {kind}" for (host, kind), count in counts.items())
    if len({key for _, _, key in everyone}) < len(everyone):
        return Finding("devices", FAULT, f"two ranks share a device: {text}")
    alike = len({kind for _, kind, _ in everyone}) == 1
    return Finding("devices", OK if alike else WARNING, text if alike else f"not all alike: {text}")


def check_versions(distributed: Distributed) -> Finding:
    """The same packages and the same code on all nodes."""
    seen, errors = on_each_node(distributed, lambda: {**versions(), **code_versions()})
    if errors:
        return Finding("versions", FAULT, "; ".join(errors))
    (first, expected), *others = seen.items()
    different = [
        f"{name}: {expected[name]} on {first}, {found[name]} on {place}"
        for place, found in others
        for name in expected
        if found[name] != expected[name]
    ]
    if different:
        return Finding("versions", FAULT, "; ".join(different))
    shown = {name: value for name, value in expected.items() if name.islower() or name.lower() not in expected}
    return Finding("versions", OK, ", ".join(f"{name} {value}" for name, value in shown.items()))


def check_names(distributed: Distributed) -> Finding:
    """Every node knows the address of node 0, and its own name."""
    master = os.environ.get("MASTER_ADDR", "127.0.0.1")

    def look() -> tuple[str, str]:
        return socket.gethostbyname(master), _own_address()

    seen, errors = on_each_node(distributed, look)
    if errors:
        return Finding("names", FAULT, f"{master} cannot be resolved: {'; '.join(errors)}")
    nameless = [place for place, (_, own) in seen.items() if not own]
    addresses = ", ".join(sorted({address for address, _ in seen.values()}))
    text = f"node 0 is {master} ({addresses})"
    if nameless:
        return Finding("names", WARNING, f"{text}; own host name unknown on {', '.join(nameless)}")
    return Finding("names", OK, text)


def _own_address() -> str:
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return ""


def check_ports(distributed: Distributed) -> Finding:
    """Every node reaches a port on node 0 that nobody used before."""
    master = os.environ.get("MASTER_ADDR", "127.0.0.1")
    listener = socket.create_server(("", 0), backlog=1024) if distributed.is_main else None
    port = distributed.broadcast(listener.getsockname()[1] if listener is not None else None)

    def connect() -> float:
        begin = time.perf_counter()
        socket.create_connection((master, port), timeout=CONNECT_SECONDS).close()
        return time.perf_counter() - begin

    seen, errors = on_each_node(distributed, connect)
    if listener is not None:
        listener.close()
    if errors:
        return Finding("ports", FAULT, f"{master} port {port} is not reachable, a firewall? {'; '.join(errors)}")
    return Finding("ports", OK, f"free port {port} of node 0 reached within {1e3 * max(seen.values()):.1f} ms")


def check_group(distributed: Distributed, joined_seconds: float) -> Finding:
    """How long the ranks took to meet, and take for a barrier."""
    distributed.barrier()
    begin = time.perf_counter()
    for _ in range(10):
        distributed.barrier()
    seconds = max(distributed.gather((time.perf_counter() - begin) / 10))
    slowest = max(distributed.gather(joined_seconds))
    backend = "nccl" if distributed.device.type == "cuda" else "gloo"
    text = f"{distributed.world_size} ranks ({backend}) met in {slowest:.1f} s, barrier {1e3 * seconds:.2f} ms"
    return Finding("process group", OK, text if distributed.world_size > 1 else "one rank, no group needed")


def check_all_reduce(distributed: Distributed) -> list[Finding]:
    """Sums are right, and how fast they are."""
    if distributed.world_size == 1:
        return []
    findings = []
    world_size = distributed.world_size
    for size in SIZES:
        # Small whole numbers: their sum is exact in float32 in whatever order it is formed.
        values = (torch.arange(size // 4, device=distributed.device) % 251).float()
        result = distributed.sum(values * (distributed.rank + 1))
        right = torch.equal(result, values * (world_size * (world_size + 1) // 2))
        wrong = [rank for rank, good in enumerate(distributed.gather(right)) if not good]
        seconds = _time_all_reduce(distributed, values)
        bandwidth = size / seconds * 2 * (world_size - 1) / world_size / 2**30
        name = f"all-reduce {size // 1024} KiB"
        if wrong:
            findings.append(Finding(name, FAULT, f"the sum is wrong on ranks {wrong}"))
        else:
            findings.append(Finding(name, OK, f"exact, {1e3 * seconds:.2f} ms, {bandwidth:.2f} GiB/s per rank"))
    return findings


def _time_all_reduce(distributed: Distributed, values: torch.Tensor) -> float:
    """Seconds of one, the slowest rank's mean over as many as fit into the time."""
    buffer = values.clone()

    def repeat(count: int) -> float:
        distributed.barrier()
        begin = time.perf_counter()
        for _ in range(count):
            distributed.sum(buffer.fill_(1.0))
        if buffer.device.type == "cuda":
            torch.cuda.synchronize(buffer.device)
        return float(max(distributed.gather((time.perf_counter() - begin) / count)))

    once = repeat(2)
    return repeat(min(200, max(2, int(SECONDS_PER_SIZE / max(once, 1e-6)))))


def check_shared_folder(distributed: Distributed, folder: Path) -> Finding:
    """Every node sees what another wrote, and replaces a file that another reads without a moment of absence."""
    token = distributed.broadcast(os.urandom(8).hex())
    if distributed.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "token", token)
    distributed.barrier()

    def look() -> float:
        begin = time.monotonic()
        while True:
            try:
                found = (folder / "token").read_text()
            except OSError:
                found = ""
            if found == token:
                break
            if time.monotonic() - begin > SHARED_FOLDER_SECONDS:
                raise OSError(f"{folder} does not show what rank 0 wrote there; is it on a shared file system?")
            time.sleep(0.05)
        for count in range(20):
            write_text(folder / "replaced", f"{token} {distributed.rank} {count}")
            if not (folder / "replaced").read_text().startswith(token):
                raise OSError(f"{folder}: a file that was replaced was not whole")
        return time.monotonic() - begin

    seen, errors = on_each_node(distributed, look)
    if distributed.is_main:
        shutil.rmtree(folder, ignore_errors=True)
    if errors:
        return Finding("shared folder", FAULT, "; ".join(errors))
    slowest = max(seen.values())
    return Finding("shared folder", OK, f"{folder.parent} seen and written by {len(seen)} nodes within {slowest:.2f} s")


def check_disk(distributed: Distributed, workdir: Path) -> Finding:
    """Free space for snapshots."""
    seen, errors = on_each_node(distributed, lambda: shutil.disk_usage(workdir).free / 2**30)
    if errors:
        return Finding("disk space", FAULT, "; ".join(errors))
    free = min(seen.values())
    verdict = FAULT if free < FREE_FAULT_GIB else WARNING if free < FREE_WARNING_GIB else OK
    return Finding("disk space", verdict, f"{free:.1f} GiB free in {workdir}")


def check_clocks(distributed: Distributed) -> Finding:
    """How far the nodes' clocks are from that of rank 0."""
    differences = []
    for _ in range(5):
        distributed.barrier()
        times = distributed.gather(time.time())
        differences.append([moment - times[0] for moment in times])
    # Ranks leave a barrier at slightly different moments; the smallest of several differences has least of that.
    skew = max(min(abs(difference) for difference in rank) for rank in zip(*differences, strict=True))
    verdict = FAULT if skew > SKEW_FAULT_SECONDS else WARNING if skew > SKEW_WARNING_SECONDS else OK
    return Finding("clocks", verdict, f"at most {skew:.3f} s apart")


def check_data_workers(distributed: Distributed, data: DataOptions, batch_size: int) -> Finding:
    """Data workers can hand over batches: sockets can be made, and shared memory holds what is on its way."""
    n_workers = data.n_workers * distributed.gather(socket.gethostname()).count(socket.gethostname())
    needed = n_workers * BATCHES_AHEAD * batch_size * math.prod(data.shape) / 2**20

    def look() -> float:
        try_socket()
        return shutil.disk_usage(SHARED_MEMORY).free / 2**20

    if n_workers == 0:
        return Finding("data workers", OK, "none (--n_workers 0)")
    seen, errors = on_each_node(distributed, look)
    if errors:
        return Finding("data workers", FAULT, "; ".join(errors))
    free = min(seen.values())
    text = f"{n_workers} have {needed:.1f} MiB on their way on a node, {SHARED_MEMORY} has {free:.0f} free"
    if free < 2 * needed:
        return Finding("data workers", FAULT if free < needed else WARNING, f"{text}: {MORE_MEMORY}")
    return Finding("data workers", OK, text)


def check_data(distributed: Distributed, data: DataOptions, run: RunOptions) -> Finding:
    """The data set opens on every node, is the same on all of them, and has no broken images."""
    datasets: dict[str, Dataset] = {}

    def look() -> tuple[str, str, float]:
        begin = time.perf_counter()
        where = run.path(data.data_location)
        prepare_dataset(data.dataset, where)
        for split in SPLITS:
            datasets[split] = open_dataset(data.dataset, split, where, data.image_size, data.image_channels, run.seed)
        items = datasets["train"].read(np.arange(min(64, datasets["train"].length or 64)))
        found = {split: contents(dataset) for split, dataset in datasets.items()}
        digest = hashlib.sha256(repr(found).encode() + items.numpy().tobytes()).hexdigest()[:12]
        what = ", ".join(f"{split}: {in_words(of_split)}" for split, of_split in found.items())
        return f"{what}, of shape {tuple(items.shape[1:])}", digest, time.perf_counter() - begin

    seen, errors = on_each_node(distributed, look)
    _, broken = on_each_node(distributed, check_images(datasets, distributed, here=distributed.local_rank == 0))
    if errors := broken or errors:
        return Finding("data set", FAULT, "; ".join(errors))
    if len({(content, digest) for content, digest, _ in seen.values()}) > 1:
        what = ", ".join(f"{place}: {content}, {digest}" for place, (content, digest, _) in seen.items())
        return Finding("data set", FAULT, f"{data.dataset} differs between nodes: {what}")
    content, _, _ = next(iter(seen.values()))
    slowest = max(seconds for _, _, seconds in seen.values())
    return Finding("data set", OK, f"{data.dataset}, {content}, opened and read within {slowest:.1f} s")
