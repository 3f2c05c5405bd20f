"""What no single option shows: values that contradict each other, found before any work is done."""

from __future__ import annotations

from trainers.options import LikelihoodOptions, OdeSamplingOptions, TrainingOptions
from trainers.score_model import likelihood_solver, sampling_solver
from trainers.system import load
from trainers.systems import SYSTEMS, find_system
from util.config import Config
from util.data.options import DataOptions
from util.errors import UsageError
from util.run_options import RunOptions

GENERATED = ("multimodal_swissroll", "diamond")


def check_config(config: Config) -> None:
    """Check everything that defines a model, and how it is sampled and evaluated.

    Raises:
        UsageError: one line that says which options contradict each other and what to change.
    """
    run = config[RunOptions]
    system = find_system(run.system)
    if run.mode == "train_deq" and not system.has_dequantizer:
        names = " or ".join(name for name, other in SYSTEMS.items() if other.has_dequantizer)
        raise UsageError(f"--mode train_deq is for --system {names}; --system {run.system} has no dequantizer")
    _check_data(config)
    _check_solvers(config)
    load(system.check)(config)


def _check_data(config: Config) -> None:
    data = config[DataOptions]
    if data.is_image and data.dataset in GENERATED:
        raise UsageError(f"--dataset {data.dataset} has points, not images; set is_image = false and name = mlp")
    if not data.is_image and data.dataset not in GENERATED:
        raise UsageError(f"--dataset {data.dataset} has images; set is_image = true and name = ncsnpp")
    if not data.is_image and data.data_dim != 2:
        raise UsageError(f"--data_dim {data.data_dim}: {data.dataset} has points of dimension 2; set data_dim = 2")
    if data.random_flip and not data.is_image:
        raise UsageError("--random_flip: points cannot be flipped; leave it out")


def _check_solvers(config: Config) -> None:
    if config.reads(OdeSamplingOptions):
        sampling_solver(config[OdeSamplingOptions])
    if config.reads(LikelihoodOptions):
        likelihood = config[LikelihoodOptions]
        likelihood_solver(likelihood)
        if likelihood.likelihood_hutchinson_type == "exact" and config[DataOptions].is_image:
            raise UsageError("--likelihood_hutchinson_type exact is for points; use rademacher for images")


def with_total_batch_size(config: Config, world_size: int) -> Config:
    """The configuration with the size of the total batch settled.

    Raises:
        UsageError: it cannot be shared among the ranks and their micro-batches.
    """
    training = config[TrainingOptions]
    total = training.total_batch_size or training.training_batch_size * world_size * training.gradient_accumulation
    if total % world_size:
        raise UsageError(
            f"--total_batch_size {total} does not divide among {world_size} ranks; use a multiple of {world_size}"
        )
    if total // world_size % training.gradient_accumulation:
        raise UsageError(
            f"--gradient_accumulation {training.gradient_accumulation} does not divide the {total // world_size} "
            "samples of each rank; change it or --total_batch_size"
        )
    return config.with_values(total_batch_size=total)


def n_micro_batches(training: TrainingOptions, world_size: int) -> int:
    """Micro-batches of each rank's share of the total batch, none larger than ``training_batch_size``."""
    per_rank = training.total_batch_size // world_size
    fewest = max(training.gradient_accumulation, -(-per_rank // training.training_batch_size))
    return next(n for n in range(fewest, per_rank + 1) if per_rank % n == 0)
