"""Runs of main.py as Slurm jobs, and what the tests look at."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.cluster.slurm_cluster import SlurmCluster
from tests.patience import PATIENCE
from tests.system.command import LAUNCHER_VARIABLES, ROOT
from util.run_file import read_run_file

STEPS = 200
"""Enough to be interrupted on the way: several seconds."""
TRAINING = [
    "-cc", "configs/smoke/tiny.txt", "--n_train_iters", str(STEPS), "--snapshot_freq", "20", "--device", "cpu",
    "--seed", "3", "--grace_seconds", "45",
]  # fmt: skip


def environment(cluster: SlurmCluster) -> dict[str, str]:
    """As on a login node: Slurm's commands, and nothing that a launcher would set."""
    values = {name: value for name, value in cluster.environment.items() if name not in LAUNCHER_VARIABLES}
    values |= {"SCOREFLEET_HOME": str(cluster.folder / "home"), "OMP_NUM_THREADS": "1"}
    values["PATH"] = f"{Path(sys.executable).parent}:{values['PATH']}"
    return values


def batch_script(cluster: SlurmCluster, name: str, warning: int = 45) -> Path:
    """One of the batch scripts, fitted to this cluster as its comments say."""
    lines = (ROOT / "slurm" / name).read_text().splitlines()
    lines = [line for line in lines if not (line.startswith("#SBATCH") and "# SITE" in line)]
    text = "\n".join(lines).replace("USR1@120", f"USR1@{warning}") + "\n"
    path = cluster.folder / f"{warning}_{name}"
    path.write_text(text)
    return path


def sbatch(cluster: SlurmCluster, options: list[str], script: Path, arguments: list[str]) -> str:
    """Submit a batch script; the job id."""
    words = ["sbatch", "--parsable", "--exclusive", f"--output={cluster.folder}/job-%j.out", *options, str(script)]
    done = subprocess.run(
        [*words, *arguments], env=environment(cluster), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def launch(cluster: SlurmCluster, *words: str, expect: int = 0) -> str:
    """``python -m launch`` with these words; its output."""
    done = subprocess.run(
        [sys.executable, "-m", "launch", *words],
        env=environment(cluster), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == expect, f"exit code {done.returncode}, not {expect}:\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def submitted_id(output: str) -> str:
    match = re.search(r"job (\d+)", output)
    assert match is not None, output
    return match.group(1)


def wait_for_step(cluster: SlurmCluster, workdir: Path, step: int) -> None:
    cluster.wait_for(lambda: read_run_file(workdir).get("step", 0) >= step, f"step {step} in {workdir}")


def preempt(cluster: SlurmCluster, nodes: int = 4) -> str:
    """Start a job of higher priority on all nodes; its id."""
    words = ["sbatch", "--parsable", "-phigh", f"-N{nodes}", "--exclusive", "-o/dev/null", "--wrap", "srun sleep 1"]
    return cluster.command(*words).strip()


def output_of(cluster: SlurmCluster, job_id: str) -> str:
    return (cluster.folder / f"job-{job_id}.out").read_text()
