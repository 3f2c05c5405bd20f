"""``--mode eval`` and ``sample``: a snapshot, and everything asked of it."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from evaluators.evaluate import run_evaluations
from evaluators.settings import settings_from
from trainers.check import check_config
from trainers.run import open_datasets
from trainers.scoreflow.dequantizer import choose_dequantizer_snapshot
from trainers.systems import build_method
from util.config import Config
from util.distributed import Distributed
from util.errors import Preempted, UsageError
from util.snapshot import choose_snapshot, inspect_snapshot, read_snapshot
from util.stop import StopRequest

logger = logging.getLogger(__name__)


def evaluate(config: Config, distributed: Distributed, stop: StopRequest) -> None:
    """Evaluate the snapshot that ``--ckpt_file`` names, or the newest intact one.

    Raises:
        UsageError: bad settings, data or snapshot.
        Preempted: some rank was asked to stop; finished chunks are kept.
    """
    check_config(config, distributed.world_size)
    if distributed.device.type == "cpu":
        # How sums are split among threads shows in the last bits, which an adaptive solver amplifies; the number of
        # threads follows the number of ranks, but values must not.
        torch.set_num_threads(1)

    def choose() -> tuple[Path, str]:
        checkpoints = config.workdir / "checkpoints"
        path = choose_snapshot(checkpoints, config.evaluation.ckpt_file, "--ckpt_file")
        if path is None:
            raise UsageError(
                f"--mode {config.run.mode}: no intact snapshot in {checkpoints}; name one with --ckpt_file"
            )
        return path, inspect_snapshot(path).sha256

    path, digest = distributed.from_main(choose)
    if config.dequantizer.eval_dequantizer:
        dequantizer, digest_of_dequantizer = distributed.from_main(lambda: choose_dequantizer_snapshot(config))
        config.dequantizer.dequantizer_ckpt_file = str(dequantizer)
        digest = f"{digest} with dequantizer {digest_of_dequantizer}"
    datasets = open_datasets(config, distributed)
    method = build_method(config, distributed)
    method.state.load_networks(read_snapshot(path), str(path))
    if distributed.is_main:
        logger.info("evaluating %s (step %d)", path, method.state.step)
    folder = config.workdir / config.evaluation.eval_folder
    stop.listen()  # from here on there is something to keep, and every chunk looks at the request
    try:
        results = run_evaluations(
            method, datasets["train"], datasets[config.evaluation.eval_split], settings_from(config), folder,
            distributed, stop, method.state.step, digest,
        )  # fmt: skip
    except Preempted as stopped:
        logger.info("%s; the same command goes on from here", stopped)
        raise
    if distributed.is_main:
        for name, entry in results.items():
            if "value" in entry:
                error = entry.get("standard_error")
                spread = f" +- {error:.4g}" if error is not None else ""
                value = f"{entry['value']:.6g}{spread} {entry['unit']}"
                logger.info("%s = %s (%d samples)", name, value, entry["n_samples"])
        logger.info("results are in %s", folder / "results.json")
