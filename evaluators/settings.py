"""From the options to what is evaluated: all that was asked for, or what is due at a step of training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from evaluators.detectors import DetectorSettings
from evaluators.options import EvaluationOptions, PeriodicEvaluationOptions
from evaluators.sample_metrics import FEATURES, LOGITS, chosen_metrics
from evaluators.subject import EvaluationSettings
from util.config import Config
from util.data.options import DataOptions
from util.errors import UsageError
from util.option_values import plain
from util.periodic import due
from util.run_options import RunOptions

RUN_FOLDERS = ("checkpoints", "tensorboard", "samples", "evaluations", "logs", "diagnostics", "dequantizer")
"""What else stands in the folder of a run."""

ASKED_FOR = (
    "eval_loss", "eval_likelihood", "eval_sample", "eval_fid", "eval_metrics", "eval_compare", "eval_density",
    "trajectory",
)  # fmt: skip
"""The options that ask for an evaluation."""


def check_evaluation(config: Config, has_likelihood: bool) -> None:
    """Raise UsageError for evaluations, on their own or during training, that make no sense together."""
    run, options, periodic = config[RunOptions], config[EvaluationOptions], config[PeriodicEvaluationOptions]
    asked = (run.trains and periodic.likelihood_freq) or (not run.trains and options.eval_likelihood)
    if asked and not has_likelihood:
        raise UsageError(f"--system {run.system} has no likelihood; leave out --eval_likelihood and --likelihood_freq")
    if run.trains:
        return
    if run.follow and (run.mode != "eval" or options.ckpt_file):
        raise UsageError("--follow evaluates every kept snapshot of a run: use --mode eval without --ckpt_file")
    if run.mode == "eval" and not any(getattr(options, name) for name in ASKED_FOR):
        raise UsageError("--mode eval: say what, with " + ", ".join(f"--{name}" for name in ASKED_FOR))
    check_folder(config)
    is_image = config[DataOptions].is_image
    if options.eval_density and is_image:
        raise UsageError("--eval_density draws densities of 2-D points; leave it out for images")
    metrics = names_in(options.eval_metrics)
    chosen_metrics(metrics, (FEATURES, LOGITS), "--eval_metrics")
    if metrics and not is_image:
        raise UsageError("--eval_metrics needs images; for points use --eval_sample and --eval_likelihood")
    if options.eval_fid and not is_image:
        raise UsageError("--eval_fid needs images; for points use --eval_sample and --eval_likelihood")


def check_folder(config: Config) -> None:
    """Raise UsageError where ``--eval_folder`` is no folder for an evaluation alone."""
    name = config[EvaluationOptions].eval_folder
    folder = PurePosixPath(name)
    if not folder.name or folder.is_absolute() or ".." in folder.parts or folder.parts[0] in RUN_FOLDERS:
        raise UsageError(
            f"--eval_folder {name}: give the name of a folder inside workdir that is not one of "
            + ", ".join(RUN_FOLDERS)
        )


def compares_with_data(config: Config) -> bool:
    """Whether samples are to be compared with others, and no file says with which."""
    options = config[EvaluationOptions]
    if config[RunOptions].trains:
        asked = config[PeriodicEvaluationOptions].fid_freq > 0
    else:
        chosen = chosen_metrics(names_in(options.eval_metrics), (FEATURES, LOGITS), "--eval_metrics")
        compared = any(metric.compares_with for metric in chosen)
        asked = options.eval_fid or options.eval_compare or compared
    return asked and not options.fid_statistics


def names_in(text: str) -> list[str]:
    """Of a list with commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def settings_from(config: Config) -> EvaluationSettings:
    """What ``--mode eval`` or ``sample`` was asked for."""
    options, run = config[EvaluationOptions], config[RunOptions]
    return EvaluationSettings(
        seed=run.eval_seed,
        eval_loss=options.eval_loss,
        eval_likelihood=options.eval_likelihood,
        eval_sample=options.eval_sample or run.mode == "sample",
        eval_fid=options.eval_fid,
        metrics=names_in(options.eval_metrics),
        eval_density=options.eval_density,
        eval_compare=options.eval_compare,
        eval_trajectory=options.trajectory,
        likelihoods=names_in(options.eval_quantities),
        n_repeats=options.eval_repeats,
        n_test_items=options.eval_n_items or None,
        n_samples=options.eval_n_samples,
        n_trajectories=options.eval_n_trajectories,
        n_fid_samples=options.eval_fid_samples,
        testing_batch_size=options.testing_batch_size,
        sampling_batch_size=options.sampling_batch_size,
        detector=DetectorSettings(
            options.fid_detector, run.path(options.fid_weights) if options.fid_weights else None, options.fid_batch_size
        ),
        fid_statistics=run.path(options.fid_statistics) if options.fid_statistics else None,
        statistics_folder=run.folder / "evaluations",
        published_behaviour=run.published_behaviour,
        method_settings=values_that_matter(config),
    )


def values_that_matter(config: Config) -> dict[str, Any]:
    """Every option that another value of an evaluation can come from, by flag.

    Those of ``EvaluationOptions`` stand in the fingerprint of the evaluation that they concern.
    """
    values = config.flat()
    return {
        option.flag: plain(values[option.flag])
        for option in config.options()
        if option.changes_values and option.declared_in is not EvaluationOptions
    }


def settings_due(config: Config, step: int, n_test_items: int | None) -> EvaluationSettings | None:
    """What is due at ``step`` of training, or None.

    Args:
        config: checked.
        step: completed steps.
        n_test_items: length of the test set; None for an endless one.
    """
    options, training = config[PeriodicEvaluationOptions], config.flat()
    last = step == training["n_train_iters"]
    fid = due(step, options.fid_freq, options.fid_threshold)
    validate = due(step, options.eval_freq, options.eval_threshold)
    likelihood = due(step, options.likelihood_freq, options.likelihood_threshold)
    if options.sample_freq:
        sample = due(step, options.sample_freq, options.sample_threshold)
    else:
        sample = fid or due(step, training["save_freq"], training["save_threshold"])
    if not (fid or validate or likelihood or sample or last):
        return None
    n_batches = options.n_likelihood_batches if likelihood else options.n_eval_batches
    n_items = n_batches * config[EvaluationOptions].testing_batch_size
    return replace(
        settings_from(config),
        eval_loss=validate,
        eval_likelihood=likelihood,
        eval_sample=sample or last,
        eval_fid=fid,
        metrics=(),
        eval_density=False,
        eval_compare=False,
        eval_trajectory=False,
        n_repeats=1,
        n_test_items=n_items if n_test_items is None else min(n_items, n_test_items),
        n_fid_samples=options.fid_samples_training,
    )
