"""``launch submit``, ``status``, ``logs``, ``cancel`` and ``requeue`` on a real Slurm and on this machine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from launch.jobs.job_file import read_job_file
from tests.cluster.slurm_cluster import SlurmCluster
from tests.cluster.slurm_runs import (
    STEPS,
    TRAINING,
    environment,
    launch,
    preempt,
    submitted_id,
    wait_for_step,
)  # fmt: skip
from tests.patience import PATIENCE
from tests.system.command import ROOT, snapshot, state_differences
from util.run_file import read_run_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
SUBMIT = ["submit", "--gpus_per_node", "2", "--time", "10", "--slurm", "exclusive", "--", *TRAINING, "--overwrite"]
SUBMIT += ["--workdir"]


def status(cluster: SlurmCluster, run: str) -> dict[str, object]:
    (entry,) = json.loads(launch(cluster, "status", "--json", run))
    return entry


def test_preempted_then_cancelled_then_requeued(slurm: SlurmCluster, undisturbed: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    first = submitted_id(launch(slurm, *SUBMIT, str(workdir)))
    assert read_run_file(workdir).get("step", 0) < STEPS, "submit waited for the run"
    wait_for_step(slurm, workdir, 10)
    running = status(slurm, first)
    assert (running["scheduler"], running["state"], running["total"]) == ("RUNNING", "training", STEPS)
    assert running["world_size"] == 2
    assert f"{first} RUNNING training" in " ".join(launch(slurm, "status").split())

    urgent = preempt(slurm)
    slurm.wait_for(lambda: slurm.state(first) == "PENDING", "the job to be back in the queue")
    step = read_run_file(workdir)["last_snapshot"]["step"]
    waiting = status(slurm, first)
    assert (waiting["state"], waiting["step"], waiting["requeues"]) == ("preempted", step, 1)
    assert str(waiting["scheduler"]).startswith("PENDING")
    assert f"requeued at step {step}" in str(waiting["last_error"])
    assert slurm.wait_for_end(urgent) == "COMPLETED"

    wait_for_step(slurm, workdir, step + 10)
    follower = subprocess.Popen(
        [sys.executable, "-m", "launch", "logs", "-f", first], env=environment(slurm), cwd=ROOT, stdout=subprocess.PIPE
    )
    told = launch(slurm, "cancel", first)
    step = read_run_file(workdir)["last_snapshot"]["step"]
    assert f"job {first} stopped; the last snapshot is step {step}" in told
    assert slurm.wait_for_end(first) == "FAILED"
    assert "it was told to stop" in str(status(slurm, str(workdir))["last_error"])
    output, _ = follower.communicate(timeout=PATIENCE)
    assert f"at step {step}; --mode continue goes on from here" in output.decode()
    assert launch(slurm, "cancel", first, expect=2).startswith("error: ")

    again = submitted_id(launch(slurm, "requeue", str(workdir), "--nodes", "1"))
    assert again != first
    assert slurm.wait_for_end(again) == "COMPLETED"
    assert snapshot(workdir)["step"] == STEPS
    assert state_differences(workdir, undisturbed) == []
    assert "finished run" in launch(slurm, "requeue", again, expect=2)


def test_requeue_of_a_running_job_keeps_its_id(slurm: SlurmCluster, undisturbed: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    job_id = submitted_id(launch(slurm, *SUBMIT, str(workdir)))
    wait_for_step(slurm, workdir, 20)
    assert "goes back into the queue" in launch(slurm, "requeue", job_id)
    assert slurm.wait_for_end(job_id) == "COMPLETED"
    assert slurm.job(job_id)["Restarts"] == "1"
    assert state_differences(workdir, undisturbed) == []


def test_on_this_machine(slurm: SlurmCluster, undisturbed: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    words = ["submit", "--executor", "local", "--gpus_per_node", "2", "--", *TRAINING, "--workdir", str(workdir)]
    first = submitted_id(launch(slurm, *words))
    wait_for_step(slurm, workdir, 10)
    assert status(slurm, first)["scheduler"] == "RUNNING"
    assert f"job {first} stopped" in launch(slurm, "cancel", str(workdir))
    job = read_job_file(workdir)
    assert job is not None
    assert job.note == "not requeued: it was told to stop"
    assert status(slurm, first)["scheduler"] == "ENDED"
    submitted_id(launch(slurm, "requeue", first))
    slurm.wait_for(lambda: read_run_file(workdir)["state"] == "finished", "the local run")
    assert state_differences(workdir, undisturbed) == []
    assert f"finished at step {STEPS}" in launch(slurm, "logs", str(workdir), "--rank", "0")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--", "--learning_rat", "1"], "did you mean '--learning_rate'?"),
        (["--time", "soon", "--"], "--time soon: not a time limit"),
        (["--nodes", "0", "--"], "argument --nodes: at least 1 expected"),
        (["--slurm", "$(reboot)=1", "--"], "write an option of sbatch as key=value"),
        (["--partition", "absent", "--"], "the scheduler refused the job: "),
        (["--gpus_per_node", "2", "--", "--n_gpus_per_node", "3"], "--gpus_per_node 2 contradicts --n_gpus_per_node 3"),
        (["--nodes", "2", "--executor", "local", "--"], "this machine is one node"),
    ],
)
def test_bad_input_is_refused_before_anything_is_queued(
    words: list[str], message: str, slurm: SlurmCluster, tmp_path: Path
) -> None:
    output = launch(slurm, "submit", *words, *TRAINING, "--workdir", str(tmp_path / "run"), expect=2)
    assert output.startswith("error: ")
    assert message in output
    assert len(output.splitlines()) == 1
    assert not slurm.command("squeue", "-h").strip()


def test_a_run_that_fails_is_explained_by_status_and_not_requeued(slurm: SlurmCluster, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    job_id = submitted_id(launch(slurm, *SUBMIT, str(workdir), "--attn_resolutions", "5"))
    assert slurm.wait_for_end(job_id) == "FAILED"
    assert slurm.job(job_id)["Restarts"] == "0"
    assert "main.py failed with exit code 2" in str(status(slurm, job_id)["last_error"])
    assert "attn_resolutions: 5 does not occur with image_size 8" in launch(slurm, "logs", job_id)


@pytest.mark.parametrize(
    "words", [["logs", "absent"], ["cancel", "absent"], ["requeue", "1234567"], ["status", "absent"]]
)
def test_unknown_runs(words: list[str], slurm: SlurmCluster) -> None:
    assert "neither a run's folder nor a known job id" in launch(slurm, *words, expect=2)
