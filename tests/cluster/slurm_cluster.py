"""A real Slurm of four nodes on this machine: munged, slurmctld and one slurmd for each node.

All nodes share one address, and ``SLURMD_NODENAME`` tells a task which of them it is on.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.patience import PATIENCE, wait_for

N_NODES = 4
PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol", "squeue", "scancel")
# The daemons have patience with each other, and with jobs that are told to end, as slow machines need it.
# A requeued job waits until its credential has expired: started sooner, a node may refuse it as revoked.
_CONFIGURATION = """
ClusterName=scorefleet
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={controller_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=10
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0
ReturnToService=2
JobRequeue=1
KillWait=60
TCPTimeout=60
MessageTimeout=60
BatchStartTimeout=300
UnkillableStepTimeout=600
SlurmdTimeout=0
MinJobAge=86400
MpiDefault=none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=node[0-{last}] NodeHostname={host} NodeAddr=127.0.0.1 Port={node_ports} CPUs=2 RealMemory=2000 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=60 MaxTime=INFINITE State=UP
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
"""


@dataclass
class SlurmCluster:
    """A running cluster.

    Attributes:
        folder: configuration, state and logs of the daemons.
        environment: makes Slurm's commands talk to this cluster.
    """

    folder: Path
    environment: Mapping[str, str]

    def command(self, *words: str) -> str:
        """The output of one of Slurm's commands."""
        done = self._run(*words)
        assert done.returncode == 0, f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def _run(self, *words: str) -> subprocess.CompletedProcess[str]:
        environment = dict(self.environment)
        return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=PATIENCE, cwd="/")

    def job(self, job_id: str) -> dict[str, str]:
        """The fields of ``scontrol show job``."""
        words = self.command("scontrol", "show", "job", "-o", job_id).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def state(self, job_id: str) -> str:
        return self.job(job_id)["JobState"]

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        wait_for(condition, what, explain=lambda: self.command("squeue", "-a"), pause=0.2)

    def wait_for_end(self, job_id: str) -> str:
        """The final state of a job: COMPLETED, FAILED, CANCELLED, TIMEOUT."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
        self.wait_for(lambda: self.state(job_id) in over, f"the end of job {job_id}")
        return self.state(job_id)

    def cancel_everything(self) -> None:
        self._run("scancel", "-u", "root")
        self.wait_for(lambda: not self.command("squeue", "-h").strip(), "an empty queue")


def why_not() -> str | None:
    """Why no cluster can be started here; None where one can."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "a Slurm cluster of several nodes on one machine needs root on Linux"
    missing = [name for name in PROGRAMS if shutil.which(name, path=_search_path()) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (packages slurm-wlm and munge)"
    return None


@contextlib.contextmanager
def running_cluster(folder: Path) -> Iterator[SlurmCluster]:
    """Start the daemons, and end exactly them."""
    host = socket.gethostname().split(".")[0]
    ports = _free_ports(N_NODES + 1)
    (folder / "state").mkdir(parents=True)
    configuration = folder / "slurm.conf"
    configuration.write_text(
        _CONFIGURATION.format(
            host=host, folder=folder, controller_port=ports[0], last=N_NODES - 1, node_ports=_port_range(ports[1:])
        )
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    environment |= {"SLURM_CONF": str(configuration), "PATH": _search_path()}
    started: list[int] = []
    try:
        _start_munge(folder / "munge", environment)
        started.append(_process_id(folder / "munge" / "munged.pid"))
        _start(["slurmctld", "-i"], environment)
        started.append(_process_id(folder / "slurmctld.pid"))
        for node in range(N_NODES):
            _start(["slurmd", "-N", f"node{node}"], environment)
            started.append(_process_id(folder / f"slurmd-node{node}.pid"))
        cluster = SlurmCluster(folder, environment)
        cluster.wait_for(lambda: cluster.command("sinfo", "-hNo", "%T").split().count("idle") >= N_NODES, "four nodes")
        yield cluster
        cluster.cancel_everything()
    finally:
        _end(started)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """The cluster, started once for all tests."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with running_cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def _search_path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _free_ports(count: int) -> list[int]:
    """Consecutive free ports below the range that outgoing connections take theirs from."""
    for first in range(17000 + os.getpid() % 100 * 50, 32000, 10):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return list(range(first, first + count))
    raise RuntimeError("no free ports for a Slurm cluster")


def _port_range(ports: list[int]) -> str:
    return f"[{ports[0]}-{ports[-1]}]"


def _start(words: list[str], environment: Mapping[str, str]) -> None:
    done = subprocess.run(words, env=dict(environment), capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, f"{words[0]}: exit code {done.returncode}\n{done.stdout}{done.stderr}"


def _start_munge(folder: Path, environment: Mapping[str, str]) -> None:
    folder.mkdir()
    user = pwd.getpwnam("munge") if _has_user("munge") else pwd.getpwuid(0)
    key = folder / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    for path in (folder, key):
        os.chown(path, user.pw_uid, user.pw_gid)
    folder.chmod(0o755)
    words = ["munged", "--force", f"--key-file={key}", f"--socket={folder}/socket", f"--pid-file={folder}/munged.pid"]
    words += [f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed"]
    _start(words, environment)


def _has_user(name: str) -> bool:
    return any(entry.pw_name == name for entry in pwd.getpwall())


def _process_id(path: Path) -> int:
    def is_written() -> bool:
        with contextlib.suppress(OSError, ValueError):
            return int(path.read_text()) > 0
        return False

    wait_for(is_written, f"{path}; look at the logs beside it")
    return int(path.read_text())


def _end(started: list[int]) -> None:
    """End the daemons in the opposite order of their start."""
    processes = []
    for process_id in reversed(started):
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(process_id)
            process.send_signal(signal.SIGTERM)
            processes.append(process)
    for process in psutil.wait_procs(processes, timeout=PATIENCE)[1]:
        process.kill()
