"""Samples of a trained model, in a program of your own.

    python -m docs.examples.samples_from_a_snapshot work_dir/demo/checkpoints/checkpoint.pth samples.png

A snapshot says what it is a model of, and how it was to be sampled. Sample i is a function of (seed, i), so that these
are the first ones of ``--mode sample``.
"""

import sys
from pathlib import Path

import torch

from main import parse_config
from trainers.systems import build_method
from util.distributed import Distributed
from util.images import make_grid, save_png
from util.noise import Noise
from util.snapshot import read_snapshot


def draw(path: Path, n_samples: int, seed: int = 0) -> torch.Tensor:
    """Samples of the averaged weights of any system: images float32 (N, C, H, W) in [0, 1], or points (N, D)."""
    snapshot = read_snapshot(path)
    config = parse_config([f"--system={snapshot['config']['system']}"]).with_values(**snapshot["config"])
    model = build_method(config, Distributed())
    model.state.load_networks(snapshot, str(path))
    noise = Noise(seed, "evaluate sample", torch.arange(n_samples))
    with torch.no_grad():
        samples = model.sample(noise)
    print(f"{n_samples} samples of step {snapshot['step']}, {samples.n_evaluations} network evaluations each")
    return samples.data


if __name__ == "__main__":
    snapshot_path, picture_path = map(Path, sys.argv[1:3])
    save_png(picture_path, make_grid(draw(snapshot_path, n_samples=16)))
