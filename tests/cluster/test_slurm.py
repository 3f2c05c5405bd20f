"""The batch scripts on a real Slurm: whatever ends a job early, it comes back and ends where it would have."""

import json
import signal
from pathlib import Path

import psutil
import pytest

from launch.jobs.job_file import read_job_file
from tests.cluster.slurm_cluster import SlurmCluster
from tests.cluster.slurm_runs import (
    STEPS,
    TRAINING,
    batch_script,
    launch,
    output_of,
    preempt,
    sbatch,
    submitted_id,
    wait_for_step,
)  # fmt: skip
from tests.system.command import snapshot, state_differences
from util.run_file import read_run_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
TWO_NODES = [*TRAINING, "--n_gpus_per_node", "1"]


def check_end(cluster: SlurmCluster, job_id: str, workdir: Path, undisturbed: Path) -> None:
    """The job finished after at least one requeue, with the state of the undisturbed run."""
    assert cluster.wait_for_end(job_id) == "COMPLETED"
    assert int(cluster.job(job_id)["Restarts"]) >= 1
    assert snapshot(workdir)["step"] == STEPS
    assert state_differences(workdir, undisturbed) == []


def test_requeue_from_outside_and_preemption(slurm: SlurmCluster, undisturbed: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    script = batch_script(slurm, "train.sbatch")
    job_id = sbatch(slurm, ["-N2"], script, [*TWO_NODES, "--overwrite", "--workdir", str(workdir)])
    wait_for_step(slurm, workdir, 10)
    slurm.command("scontrol", "requeue", job_id)
    slurm.wait_for(lambda: read_run_file(workdir)["state"] == "preempted", "the run to stop")
    wait_for_step(slurm, workdir, read_run_file(workdir)["step"] + 15)
    urgent = preempt(slurm)
    slurm.wait_for(lambda: slurm.state(job_id) == "PENDING", "the job to be back in the queue")
    stopped = read_run_file(workdir)
    assert (stopped["state"], stopped["world_size"]) == ("preempted", 2)
    assert stopped["last_snapshot"]["step"] == stopped["step"], "a step that was reported as done is not in a snapshot"
    assert slurm.wait_for_end(urgent) == "COMPLETED"
    check_end(slurm, job_id, workdir, undisturbed)
    # The first requeue was the scheduler's, the second the job's own.
    assert slurm.job(job_id)["Restarts"] == "2"
    assert output_of(slurm, job_id).count(f"job {job_id}: requeued at step {stopped['step']}") == 1
    steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(10, STEPS + 1, 10))


def test_time_limit(slurm: SlurmCluster, undisturbed: Path, tmp_path: Path) -> None:
    """By sbatch on one node and by submitit on two, side by side.

    The limit is drawn in when the runs are under way, and back when they have stopped: however slow, they meet it once.
    """
    workdirs = [tmp_path / "sbatch", tmp_path / "submit"]
    script = batch_script(slurm, "train.sbatch", warning=60)
    arguments = [*TRAINING, "--grace_seconds", "60", "--workdir"]
    first = sbatch(slurm, ["-N1", "--time=60"], script, [*arguments, str(workdirs[0]), "--n_gpus_per_node", "2"])
    options = ["--nodes", "2", "--gpus_per_node", "1", "--time", "60", "--slurm", "exclusive"]
    second = submitted_id(launch(slurm, "submit", *options, "--", *arguments, str(workdirs[1])))
    # Slurm looks at time limits twice a minute, so the runs stand still until the warning is there.
    held: dict[Path, psutil.Process] = {}
    slurm.wait_for(lambda: hold(workdirs, 10, held), "both runs")
    for job_id in (first, second):
        slurm.command("scontrol", "update", f"JobId={job_id}", "EndTime=now+80")
    slurm.wait_for(lambda: all(map(goes_on, held.values())), "the warnings")
    for job_id in (first, second):
        slurm.wait_for(lambda job_id=job_id: slurm.job(job_id)["Restarts"] != "0", f"job {job_id} to be requeued")
        slurm.command("scontrol", "update", f"JobId={job_id}", "TimeLimit=60")
    for job_id, workdir in zip((first, second), workdirs, strict=True):
        check_end(slurm, job_id, workdir, undisturbed)
        job = read_job_file(workdir)
        assert job is not None
        assert job.requeues >= 1
        assert job.note.startswith("requeued at step ")


def test_cancelled_and_failed_jobs_do_not_come_back(slurm: SlurmCluster, tmp_path: Path) -> None:
    script = batch_script(slurm, "train.sbatch")
    one_rank = [*TRAINING, "--n_train_iters", "5000", "--n_gpus_per_node", "1", "--workdir"]
    workdirs = [tmp_path / "cancelled", tmp_path / "killed"]
    cancelled, killed = (sbatch(slurm, ["-N1"], script, [*one_rank, str(workdir)]) for workdir in workdirs)
    for workdir in workdirs:
        wait_for_step(slurm, workdir, 10)
    slurm.command("scancel", cancelled)
    (rank,) = ranks_of(workdirs[1])
    rank.send_signal(signal.SIGKILL)
    assert slurm.wait_for_end(cancelled) == "CANCELLED"
    assert "not requeued: the job is COMPLETING" in output_of(slurm, cancelled)
    stopped = read_run_file(workdirs[0])
    assert stopped["last_snapshot"]["step"] == stopped["step"]
    assert slurm.wait_for_end(killed) == "FAILED"
    assert slurm.job(killed)["ExitCode"] == "1:0"
    assert "was killed by SIGKILL" in output_of(slurm, killed)
    assert slurm.job(killed)["Restarts"] == "0"


def ranks_of(workdir: Path) -> list[psutil.Process]:
    """Rank 0 of the run in this folder, if it runs."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        words, variables = process.info["cmdline"] or [], process.info["environ"] or {}
        if str(workdir) in words and variables.get("RANK") == "0":
            found.append(process)
    return found


def hold(workdirs: list[Path], step: int, held: dict[Path, psutil.Process]) -> bool:
    """Stop rank 0 of each run that has come to a step; whether all are stopped."""
    for workdir in workdirs:
        if workdir not in held and read_run_file(workdir).get("step", 0) >= step:
            (held[workdir],) = ranks_of(workdir)
            held[workdir].send_signal(signal.SIGSTOP)
    return len(held) == len(workdirs)


def goes_on(held: psutil.Process) -> bool:
    """Whether the process goes on, as it does when Slurm sends a signal: it sends SIGCONT with it."""
    try:
        return held.status() != psutil.STATUS_STOPPED
    except psutil.NoSuchProcess:
        return True


def test_evaluation_and_bad_arguments(slurm: SlurmCluster, undisturbed: Path) -> None:
    script = batch_script(slurm, "eval.sbatch")
    arguments = [*TRAINING, "--workdir", str(undisturbed)]
    # A task for each rank: two nodes of two.
    evaluation = sbatch(
        slurm, ["-N2", "--ntasks-per-node=2"], script, [*arguments, "--eval_folder", "loss", "--eval_loss"]
    )
    bad = sbatch(slurm, ["-N1"], script, [*arguments, "--eval_looss"])
    assert slurm.wait_for_end(evaluation) == "COMPLETED", output_of(slurm, evaluation)
    assert json.loads((undisturbed / "loss" / "results.json").read_text())
    assert slurm.wait_for_end(bad) == "FAILED"
    assert slurm.job(bad)["ExitCode"] == "2:0"
    assert "did you mean '--eval_loss'?" in output_of(slurm, bad)
    assert f"{evaluation} COMPLETED finished" in " ".join(launch(slurm, "status", str(undisturbed)).split())
