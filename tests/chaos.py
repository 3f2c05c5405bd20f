"""``python -m tests.chaos --rounds 30 --seed 1``: runs that something happens to, continued and compared bit by bit.

Each round starts a run of two or three ranks, does one random thing to it at a random moment (gathering, start-up,
training, snapshot or evaluation, wherever it falls), waits for the command to end, starts the same command again, and
compares the final state with that of an undisturbed run. Exit code 1 if a round lost work that had been reported as
saved, did not end within its bound, or ended in another state.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from launch.addresses import LOOPBACK, listen
from tests.cluster.network import Network, why_not
from tests.system.command import ROOT, alive, arguments, ranks_of, run, start, state_differences
from util.run_file import read_run_file

OPTIONS: dict[str, Any] = {
    "config": "configs/smoke/tiny.txt",
    "device": "cpu",
    "n_train_iters": 80,
    "total_batch_size": 12,
    "snapshot_freq": 3,
    "log_freq": 1,
    "eval_freq": 7,
    "fid_freq": 10,
    "fid_samples_training": 48,
    "rank_timeout": 6,
    "node_timeout": 6,
    "grace_seconds": 30,
    "rendezvous_timeout": 20,
}
BOUND_SECONDS = 300.0
WISHES = [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP]
SIGNALS = [*WISHES, signal.SIGKILL, signal.SIGSTOP]


@dataclass
class Round:
    """What happened in one round.

    Attributes:
        event: what was done to the run.
        moment: the run's state when it was done, and its step.
        code: exit code of the disturbed command, None if it had to be killed (a stopped agent cannot exit).
        notice: seconds from the event until no rank was left.
        lost: steps done but not in a snapshot.
        problem: why the round failed, or empty.
    """

    event: str
    n_ranks: int
    moment: str = ""
    code: int | None = None
    notice: float = 0.0
    lost: int = 0
    problem: str = ""

    def row(self, number: int) -> str:
        code = "-" if self.code is None else str(self.code)
        verdict = self.problem or "equal"
        return (
            f"{number:>3}  {self.event:<22} {self.n_ranks:>5}  {self.moment:<16} {code:>4}  "
            f"{self.notice:>6.1f}  {self.lost:>4}  {verdict}"
        )


def steps_logged(workdir: Path) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])["step"])
    return 0


def steps_saved(workdir: Path) -> int:
    return int((read_run_file(workdir).get("last_snapshot") or {"step": 0})["step"])


def wait_for_end(commands: list[subprocess.Popen[str]], ranks: list[psutil.Process], result: Round) -> None:
    """Until commands and ranks are gone, at most BOUND_SECONDS; notes exit code and time."""
    started = time.monotonic()
    while alive(ranks) or any(command.poll() is None for command in commands):
        if not alive(ranks):
            # A stopped agent cannot leave by itself; what counts is that its ranks have.
            for command in commands:
                with contextlib.suppress(psutil.NoSuchProcess):
                    if psutil.Process(command.pid).status() == psutil.STATUS_STOPPED:
                        command.kill()
        if time.monotonic() - started > BOUND_SECONDS:
            result.problem = f"still there after {BOUND_SECONDS:g} s"
            for process in [*alive(ranks), *commands]:
                process.kill()
            break
        time.sleep(0.05)
    result.notice = time.monotonic() - started
    codes = [command.wait() for command in commands]
    result.code = None if any(code < 0 for code in codes) else max(codes)


def watch_moment(workdir: Path, result: Round) -> None:
    status = read_run_file(workdir)
    result.moment = f"{status.get('state', 'start-up')} {steps_logged(workdir)}"


def signal_round(generator: random.Random, workdir: Path, n_ranks: int, seconds: float) -> Round:
    """A signal to one rank or to the agent."""
    number = generator.choice(SIGNALS)
    to_rank = generator.random() < 0.6
    result = Round(f"{number.name} to {'a rank' if to_rank else 'the agent'}", n_ranks)
    process = start(workdir, **OPTIONS, n_gpus_per_node=n_ranks)
    deadline = time.monotonic() + generator.uniform(0.3, seconds)
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    watch_moment(workdir, result)
    if process.poll() is not None:
        result.event = "none (had finished)"
        result.code = process.wait()
        return result
    ranks = ranks_of(process)
    target: Any = process
    if to_rank and ranks:
        target = ranks[generator.choice(sorted(ranks))]
    with contextlib.suppress(psutil.NoSuchProcess):
        target.send_signal(number)
    wait_for_end([process], list(ranks.values()), result)
    if number in WISHES and not result.problem:
        if result.code not in (0, 75):
            result.problem = f"exit code {result.code} after {number.name}"
        elif steps_logged(workdir) > steps_saved(workdir):
            result.problem = f"{number.name} lost {steps_logged(workdir) - steps_saved(workdir)} steps"
    return result


def gathering_round(generator: random.Random, workdir: Path) -> Round:
    """A stop signal to one of two nodes that wait for a third, which does not come."""
    number, target = generator.choice([*WISHES, signal.SIGINT]), generator.choice([0, 1])
    result = Round(f"{number.name}, gathering", 2, "gathering")
    with listen(LOOPBACK, 0) as taken:
        port = int(taken.getsockname()[1])
    meeting = {"n_gpus_per_node": 1, "n_nodes": 3, "master_address": LOOPBACK, "master_port": port}
    nodes = [start(workdir, **{**OPTIONS, **meeting, "rendezvous_timeout": 1e6}, node_rank=rank) for rank in (0, 1)]
    while not (is_told(nodes[0], "number 2 of 3") or nodes[0].poll() is not None):
        pass
    time.sleep(generator.uniform(0.0, 1.0))
    nodes[target].send_signal(number)
    wait_for_end(nodes, [], result)
    if not result.problem and [node.returncode for node in nodes] != [75, 75]:
        result.problem = f"exit codes {[node.returncode for node in nodes]} after {number.name}"
    elif not result.problem and workdir.exists():
        result.problem = f"left {sorted(path.name for path in workdir.iterdir())}"
    return result


def beside_round(generator: random.Random, workdir: Path, n_ranks: int, seconds: float) -> Round:
    """A second run in the same folder, or an evaluation, beside a run to which nothing else happens."""
    evaluates = generator.random() < 0.5
    result = Round("an evaluation beside" if evaluates else "a second run", n_ranks)
    process = start(workdir, **OPTIONS, n_gpus_per_node=n_ranks)
    deadline = time.monotonic() + generator.uniform(0.3, seconds)
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    watch_moment(workdir, result)
    wish = {"mode": "eval", "eval_loss": True, "eval_n_items": 48} if evaluates else {}
    other = start(workdir, **OPTIONS, **wish, n_gpus_per_node=n_ranks)
    output, _ = other.communicate(timeout=BOUND_SECONDS)
    wait_for_end([process], [], result)
    codes = [process.returncode, other.returncode]
    if evaluates and codes[0] == 0 and (codes[1] == 0 or (codes[1] == 2 and "no intact snapshot" in output)):
        return result
    if not evaluates and sorted(codes) == [0, 2]:  # whichever comes first trains
        return result
    result.problem = result.problem or f"exit codes {codes}: {output.splitlines()[-1][:80]}"
    return result


def is_told(node: subprocess.Popen[str], text: str) -> bool:
    """Whether the next line that a command writes has this text; it is waited for."""
    assert node.stdout is not None
    return text in node.stdout.readline()


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    disk = folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(disk)], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
        disk.rmdir()


def fill(disk: Path) -> Path:
    ballast = disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 14))
    return ballast


def disk_round(generator: random.Random, workdir: Path, n_ranks: int, seconds: float) -> Round:
    """The disk of the run's folder fills up."""
    result = Round("disk full", n_ranks)
    process = start(workdir, **OPTIONS, n_gpus_per_node=n_ranks)
    time.sleep(generator.uniform(0.3, seconds))
    watch_moment(workdir, result)
    ranks = list(ranks_of(process).values()) if process.poll() is None else []
    ballast = fill(workdir.parent)
    wait_for_end([process], ranks, result)
    ballast.unlink()
    return result


def network_round(generator: random.Random, workdir: Path, hosts: Network, seconds: float) -> Round:
    """The link of one of two hosts goes down."""
    result = Round("network down", 2)
    commands = start_on(hosts, workdir)
    time.sleep(generator.uniform(0.3, seconds))
    watch_moment(workdir, result)
    ranks = [process for host in hosts.hosts for process in hosts.processes(host)]
    hosts.disconnect(generator.choice(hosts.hosts))
    wait_for_end(commands, ranks, result)
    hosts.clear()
    hosts.connect_all()
    return result


def start_on(hosts: Network, workdir: Path) -> list[subprocess.Popen[str]]:
    commands = []
    # As many threads as a rank of the undisturbed run has on one host: sums depend on them in the last bit.
    threads = max(1, len(os.sched_getaffinity(0)) // len(hosts.hosts))
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    for node_rank, host in enumerate(hosts.hosts):
        words = arguments(
            workdir, **OPTIONS, n_gpus_per_node=1, n_nodes=2, node_rank=node_rank, master_address=hosts.address("node1")
        )
        commands.append(
            subprocess.Popen(
                hosts.command(host, words),
                cwd=ROOT,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        )
    return commands


def finish(workdir: Path, n_ranks: int) -> None:
    """Carry the run on to its end, if it has not come there."""
    if read_run_file(workdir).get("state") != "finished":
        run(workdir, **OPTIONS, n_gpus_per_node=n_ranks)


def judge(result: Round, workdir: Path, undisturbed: Path, reported: int, reached: int) -> None:
    """Continue the run and compare."""
    result.lost = max(0, reached - reported)
    try:
        finish(workdir, result.n_ranks)
    except AssertionError as error:
        result.problem = result.problem or f"could not be continued: {str(error).splitlines()[-1][:80]}"
        return
    different = state_differences(undisturbed, workdir)
    if different and not result.problem:
        result.problem = f"ended differently in {len(different)} places"


def play(rounds: int, seed: int, folder: Path, say: Callable[[str], None]) -> list[Round]:
    """All rounds; a line to ``say`` for each."""
    seconds = 0.0
    for n_ranks in (2, 3):
        started = time.monotonic()
        run(folder / f"undisturbed_{n_ranks}", **OPTIONS, n_gpus_per_node=n_ranks)
        seconds = max(seconds, time.monotonic() - started)
    say(f"an undisturbed run takes {seconds:.1f} s")
    say("  #  event                  ranks  moment           code  notice  lost  final state")
    can_isolate = why_not() is None
    results = []
    for number in range(1, rounds + 1):
        generator = random.Random(f"{seed} {number}")
        workdir = folder / f"round_{number}"
        kind = generator.choices(["signal", "disk", "network", "gathering", "beside"], [8, 1, 1, 2, 2])[0]
        if kind == "gathering":
            result = gathering_round(generator, workdir)
            judge(result, workdir, folder / "undisturbed_2", 0, 0)
        elif kind == "beside":
            n_ranks = generator.choice([2, 3])
            result = beside_round(generator, workdir, n_ranks, seconds)
            judge(result, workdir, folder / f"undisturbed_{n_ranks}", 0, 0)
        elif kind == "signal" or not can_isolate:
            n_ranks = generator.choice([2, 3])
            result = signal_round(generator, workdir, n_ranks, seconds)
            judge(result, workdir, folder / f"undisturbed_{n_ranks}", steps_saved(workdir), steps_logged(workdir))
        elif kind == "disk":
            n_ranks = generator.choice([2, 3])
            with small_disk(folder) as disk:
                workdir = disk / "run"
                result = disk_round(generator, workdir, n_ranks, seconds)
                saved, logged = steps_saved(workdir), steps_logged(workdir)
                judge(result, workdir, folder / f"undisturbed_{n_ranks}", saved, logged)
        else:
            hosts = Network(2, Path(tempfile.mkdtemp(dir=folder)))
            try:
                hosts.up()
                result = network_round(generator, workdir, hosts, seconds)
            finally:
                hosts.down()
            judge(result, workdir, folder / "undisturbed_2", steps_saved(workdir), steps_logged(workdir))
        results.append(result)
        say(result.row(number))
        shutil.rmtree(workdir, ignore_errors=True)
    return results


def summary(results: list[Round]) -> str:
    survived = sum(not result.problem for result in results)
    killed = [result for result in results if not any(number.name in result.event for number in WISHES)]
    asked = [result for result in results if result not in killed]
    return (
        f"{len(results)} rounds, {survived} survived; longest time to notice "
        f"{max(result.notice for result in results):.1f} s; steps lost to stop signals "
        f"{max((result.lost for result in asked), default=0)}, to anything else at most "
        f"{max((result.lost for result in killed), default=0)} (snapshots every {OPTIONS['snapshot_freq']} steps)"
    )


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30, help="number of rounds")
    parser.add_argument("--seed", type=int, default=1, help="of what happens when")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        results = play(options.rounds, options.seed, Path(folder), lambda line: print(line, flush=True))
    print(summary(results))
    return int(any(result.problem for result in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
