"""``python -m benchmarks.launch_times``: how long a run takes to start, to stop and to come back, on this machine."""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def start(workdir: Path, n_ranks: int) -> subprocess.Popen[bytes]:
    """A run that logs every step and never ends by itself."""
    words = [sys.executable, str(ROOT / "main.py"), "-cc", str(ROOT / "configs/smoke/tiny.txt")]
    options = {"workdir": workdir, "n_gpus_per_node": n_ranks, "device": "cpu", "n_train_iters": 10**6, "log_freq": 1}
    for name, value in options.items():
        words += [f"--{name}", str(value)]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for_step(workdir: Path, step: int) -> float:
    """The time at which the run logged ``step``, as the run's own clock says."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        metrics = workdir / "metrics.jsonl"
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        for line in lines:
            if line.endswith("}") and (entry := json.loads(line))["step"] == step:
                return float(entry["time"])
        time.sleep(0.01)
    raise TimeoutError(f"step {step} did not come within 120 s")


def last_step(workdir: Path) -> int:
    return int(json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])["step"])


def measure(n_ranks: int, n_warm_steps: int) -> dict[str, float]:
    """Seconds: command to first step, SIGTERM to exit, restart to first new step."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        began = time.time()
        process = start(workdir, n_ranks)
        first = wait_for_step(workdir, 1) - began
        wait_for_step(workdir, n_warm_steps)
        signalled = time.time()
        process.send_signal(signal.SIGTERM)
        code = process.wait()
        stopped = time.time() - signalled
        if code != 75:
            raise RuntimeError(f"exit code {code} after SIGTERM")
        began, step = time.time(), last_step(workdir)
        process = start(workdir, n_ranks)
        again = wait_for_step(workdir, step + 1) - began
        process.send_signal(signal.SIGTERM)
        process.wait()
    return {"command to first step": first, "SIGTERM to exit": stopped, "restart to first new step": again}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.launch_times", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--n_gpus_per_node", type=int, default=2, help="CPU ranks")
    options = parser.parse_args()
    times = [measure(options.n_gpus_per_node, 20) for _ in range(options.repeats)]
    for name in times[0]:
        values = [entry[name] for entry in times]
        print(f"{name:<28} median {statistics.median(values):6.2f} s   largest {max(values):6.2f} s")


if __name__ == "__main__":
    main()
