"""From the options to what is evaluated: all that was asked for, or what is due at a step of training."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from evaluators.evaluate import EvaluationSettings
from util.config import Config


def due(step: int, frequency: int, threshold: int = 0) -> bool:
    """Whether a periodic action falls on ``step``, as the published systems count; frequency 0 is never."""
    return frequency > 0 and step >= threshold and step % frequency == 0


def settings_from(config: Config) -> EvaluationSettings:
    """What ``--mode eval`` or ``sample`` was asked for."""
    options, run = config.evaluation, config.run
    statistics = options.fid_statistics
    return EvaluationSettings(
        seed=options.eval_seed,
        eval_loss=options.eval_loss,
        eval_likelihood=options.eval_likelihood,
        eval_sample=options.eval_sample or run.mode == "sample",
        eval_fid=options.eval_fid,
        eval_density=options.eval_density,
        eval_compare=options.eval_compare,
        # So few steps are always worth a look.
        eval_trajectory=options.trajectory or (run.mode == "sample" and run.system == "hsivi"),
        likelihoods=[name.strip() for name in options.eval_quantities.split(",") if name.strip()],
        n_repeats=options.eval_repeats,
        n_test_items=options.eval_n_items or None,
        n_samples=options.eval_n_samples,
        n_trajectories=options.eval_n_trajectories,
        n_fid_samples=options.eval_fid_samples,
        testing_batch_size=config.training.testing_batch_size,
        sampling_batch_size=config.training.sampling_batch_size,
        fid_detector=options.fid_detector,
        fid_statistics=Path(run.root) / statistics if statistics else None,
        statistics_folder=config.workdir / "evaluations",
        published_behaviour=run.published_behaviour,
        method_settings={
            **asdict(config.process),
            **asdict(config.discrete),
            **asdict(config.log_snr),
            **asdict(config.objective),
            **asdict(config.joint),
            **asdict(config.sampling),
            **asdict(config.hsivi),
            **asdict(config.predictor_corrector),
            **asdict(config.likelihood),
            **asdict(config.bound),
            "autocast_eval": config.optimization.autocast_eval,
        },
    )


def settings_due(config: Config, step: int, n_test_items: int | None) -> EvaluationSettings | None:
    """What is due at ``step`` of training, or None. ``n_test_items`` is the length of the test set."""
    options = config.training
    last = step == options.n_train_iters
    fid = due(step, options.fid_freq, options.fid_threshold)
    validate = due(step, options.eval_freq, options.eval_threshold)
    likelihood = due(step, options.likelihood_freq, options.likelihood_threshold)
    if options.sample_freq:
        sample = due(step, options.sample_freq, options.sample_threshold)
    else:
        sample = fid or due(step, options.save_freq, options.save_threshold)
    if not (fid or validate or likelihood or sample or last):
        return None
    n_batches = options.n_likelihood_batches if likelihood else options.n_eval_batches
    n_items = n_batches * options.testing_batch_size
    return replace(
        settings_from(config),
        eval_loss=validate,
        eval_likelihood=likelihood,
        eval_sample=sample or last,
        eval_fid=fid,
        eval_density=False,
        eval_compare=False,
        eval_trajectory=False,
        n_repeats=1,
        n_test_items=n_items if n_test_items is None else min(n_items, n_test_items),
        n_fid_samples=options.fid_samples_training,
    )
