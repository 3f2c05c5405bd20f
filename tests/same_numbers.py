"""Whether a refactoring changed a number: what settings resolve to, the trained state of small ones, the demo.

    python -m tests.same_numbers collect CHECKOUT NUMBERS.json
    python -m tests.same_numbers compare BEFORE.json AFTER.json

``collect`` runs the commands of another checkout of this project (or of this one) in its own folder, so that the two
sides share no code. An hour's patience is not needed: each small setting trains for 20 steps.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

N_STEPS = 20
RESOLVE = """
import json, sys
try:
    from main import parse_config
except ImportError:
    from main import parse_config
print(json.dumps(parse_config(sys.argv[1:]).flat()))
"""
COMMON = ("--device", "cpu", "--save_freq", "0", "--eval_freq", "0", "--sample_freq", "1000000", "--fid_freq", "0")


def run(checkout: Path, *words: str) -> str:
    """A command in ``checkout``; its output."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(checkout)}
    done = subprocess.run(
        [sys.executable, *words], cwd=checkout, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}\n{done.stdout}{done.stderr}")
    return done.stdout


def digest(state: Any) -> str:
    """Of nested containers of tensors and numbers, bit for bit."""
    found = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found.update(str(value.dtype).encode() + value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                found.update(str(key).encode())
                add(value[key])
        elif isinstance(value, (list, tuple)):
            for entry in value:
                add(entry)
        else:
            found.update(repr(value).encode())

    add(state)
    return found.hexdigest()[:16]


def trained_states(checkout: Path, folder: Path) -> dict[str, dict[str, str]]:
    """For each small setting, digests of networks, averages and optimisers after ``N_STEPS`` steps."""
    states: dict[str, dict[str, str]] = {}

    def train(name: str, workdir: Path, *words: str, n_steps: int = N_STEPS, inside: str = "") -> None:
        run(checkout, "main.py", "--workdir", str(workdir), "--n_train_iters", str(n_steps), *COMMON, *words)
        path = workdir / inside / "checkpoints" / "checkpoint.pth"
        state = torch.load(path, weights_only=True)
        assert state["step"] == n_steps
        states[name] = {part: digest(state[part]) for part in ("networks", "emas", "optimizers")}
        print(name, states[name], flush=True)

    def smoke(name: str) -> str:
        return f"configs/smoke/{name}.txt"

    for name in ("tiny", "digits", "diamond", "swissroll", "scoreflow_vp", "scoreflow_subvp", "idode_vp", "idode_sp",
                 "ddpm", "indm_vp_nll", "indm_ve_fid"):  # fmt: skip
        train(name, folder / name, "-cc", smoke(name))
    teacher = folder / "ddpm" / "checkpoints" / "checkpoint.pth"
    train("hsivi", folder / "hsivi", "-cc", smoke("hsivi"), "--pretrained_model", str(teacher))
    train("scoreflow_dequantizer", folder / "scoreflow_vp", "-cc", smoke("scoreflow_vp"), "-sc",
          smoke("scoreflow_dequantizer"), "--mode", "train_deq", inside="dequantizer")  # fmt: skip
    train("idode_second_order", folder / "idode_vp", "-cc", smoke("idode_vp"), "-sc", smoke("idode_second_order"),
          "--mode", "continue", n_steps=2 * N_STEPS)  # fmt: skip
    return states


def collect(checkout: Path) -> dict[str, Any]:
    """All numbers of a checkout, JSON-serialisable."""
    settings = sorted(str(path.relative_to(checkout)) for path in (checkout / "configs").rglob("*.txt"))
    configurations = {name: json.loads(run(checkout, "-c", RESOLVE, "-cc", name)) for name in settings}
    with tempfile.TemporaryDirectory() as folder:
        states = trained_states(checkout, Path(folder))
    results = checkout / "work_dir" / "demo" / "nelbo_fid" / "results.json"
    demo = json.loads(results.read_text())["results"] if results.is_file() else {}
    return {
        "configurations": configurations,
        "states": states,
        "demo": {name: {"value": entry.get("value"), "nfe": entry.get("nfe")} for name, entry in demo.items()},
    }


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What differs, a line each. An option may be missing from a configuration that does not read it."""
    found = []
    for name, options in before["configurations"].items():
        now = after["configurations"].get(name)
        if now is None:
            found.append(f"{name}: gone")
            continue
        changed = {key: (options[key], now[key]) for key in options.keys() & now.keys() if options[key] != now[key]}
        found += [f"{name}: {key}: {was!r} -> {value!r}" for key, (was, value) in sorted(changed.items())]
        found += [f"{name}: {key}: new" for key in sorted(now.keys() - options.keys())]
    for part in ("states", "demo"):
        for name, values in before[part].items():
            if after[part].get(name) != values:
                found.append(f"{part}: {name}: {values} -> {after[part].get(name)}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.same_numbers", description=__doc__)
    parser.add_argument("action", choices=("collect", "compare"))
    parser.add_argument("first", type=Path, help="CHECKOUT, or BEFORE.json")
    parser.add_argument("second", type=Path, help="NUMBERS.json to write, or AFTER.json")
    options = parser.parse_args()
    if options.action == "collect":
        options.second.write_text(json.dumps(collect(options.first.resolve()), indent=1))
        return 0
    before, after = (json.loads(path.read_text()) for path in (options.first, options.second))
    found = differences(before, after)
    print("\n".join(found) or "equal")
    n_options = sum(len(options) for options in after["configurations"].values())
    print(f"{len(after['configurations'])} settings with {n_options} options, {len(after['states'])} trained states, "
          f"{len(after['demo'])} results of the demo")  # fmt: skip
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
