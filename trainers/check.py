"""What no single option shows: values that contradict each other, found before any work is done."""

from __future__ import annotations

from pathlib import PurePosixPath

from diffusion.ode import check_solver
from trainers.systems import SYSTEMS
from util.config import Config
from util.errors import UsageError

GENERATED = ("multimodal_swissroll", "diamond")
_OWN_FOLDERS = ("checkpoints", "tensorboard", "samples", "evaluations", "logs", "diagnostics", "dequantizer")


def check_config(config: Config, world_size: int) -> None:
    """Check the whole configuration, and settle the total batch size.

    Raises:
        UsageError: one line that says which options contradict each other and what to change.
    """
    _check_data(config)
    _check_sampling(config)
    _check_dequantizer(config)
    SYSTEMS[config.run.system].check(config)
    if config.run.trains:
        _check_batches(config, world_size)
    else:
        _check_evaluation(config)


def _check_data(config: Config) -> None:
    data = config.data
    if data.is_image and data.dataset in GENERATED:
        raise UsageError(f"--dataset {data.dataset} has points, not images; set is_image = false and name = mlp")
    if not data.is_image and data.dataset not in GENERATED:
        raise UsageError(f"--dataset {data.dataset} has images; set is_image = true and name = ncsnpp")
    if not data.is_image and data.data_dim != 2:
        raise UsageError(f"--data_dim {data.data_dim}: {data.dataset} has points of dimension 2; set data_dim = 2")
    if data.random_flip and not data.is_image:
        raise UsageError("--random_flip: points cannot be flipped; leave it out")


def _check_sampling(config: Config) -> None:
    sampling, likelihood = config.sampling, config.likelihood
    check_solver(sampling.sampling_solver, sampling.sampling_n_steps or None)
    check_solver(likelihood.likelihood_solver, likelihood.likelihood_n_steps or None)
    if likelihood.likelihood_hutchinson_type == "exact" and config.data.is_image:
        raise UsageError("--likelihood_hutchinson_type exact is for points; use rademacher for images")
    if sampling.sampling_method in ("em", "sscs") and sampling.denoising and sampling.n_discrete_steps < 2:
        raise UsageError("--n_discrete_steps 1 leaves no step before the denoising one; give at least 2")


def _check_dequantizer(config: Config) -> None:
    for asked, flag in (
        (config.run.mode == "train_deq", "--mode train_deq"),
        (config.dequantizer.eval_dequantizer, "--eval_dequantizer"),
    ):
        if asked and config.run.system != "scoreflow":
            raise UsageError(f"{flag} is for --system scoreflow; --system {config.run.system} has no dequantizer")


def _check_batches(config: Config, world_size: int) -> None:
    training = config.training
    if training.total_batch_size == 0:
        training.total_batch_size = training.training_batch_size * world_size * training.gradient_accumulation
    total, per_rank = training.total_batch_size, training.total_batch_size // world_size
    if total % world_size:
        raise UsageError(
            f"--total_batch_size {total} does not divide among {world_size} ranks; use a multiple of {world_size}"
        )
    if per_rank % training.gradient_accumulation:
        raise UsageError(
            f"--gradient_accumulation {training.gradient_accumulation} does not divide the {per_rank} samples of each "
            "rank; change it or --total_batch_size"
        )


def n_micro_batches(config: Config, world_size: int) -> int:
    """Micro-batches of each rank's share of the total batch, none larger than ``training_batch_size``."""
    training = config.training
    per_rank = training.total_batch_size // world_size
    fewest = max(training.gradient_accumulation, -(-per_rank // training.training_batch_size))
    return next(n for n in range(fewest, per_rank + 1) if per_rank % n == 0)


def _check_evaluation(config: Config) -> None:
    evaluation = config.evaluation
    wanted = ("eval_loss", "eval_likelihood", "eval_sample", "eval_fid", "eval_compare", "eval_density", "trajectory")
    if config.run.mode == "eval" and not any(getattr(evaluation, name) for name in wanted):
        raise UsageError("--mode eval: say what, with " + ", ".join(f"--{name}" for name in wanted))
    folder = PurePosixPath(evaluation.eval_folder)
    if not folder.name or folder.is_absolute() or ".." in folder.parts or folder.parts[0] in _OWN_FOLDERS:
        raise UsageError(
            f"--eval_folder {evaluation.eval_folder}: give the name of a folder inside workdir that is not one of "
            + ", ".join(_OWN_FOLDERS)
        )
    if evaluation.eval_density and config.data.is_image:
        raise UsageError("--eval_density draws densities of 2-D points; leave it out for images")
    if evaluation.eval_fid and not config.data.is_image:
        raise UsageError("--eval_fid needs images; for points use --eval_sample and --eval_likelihood")
