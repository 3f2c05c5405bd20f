"""Options of evaluations: on their own, and during training.

What ``EvaluationOptions`` says stands in the fingerprint of the evaluation that it concerns (see ``evaluators.job``).
"""

from __future__ import annotations

from dataclasses import dataclass

from util.option import PLACE, VALUE, option


@dataclass(frozen=True)
class EvaluationOptions:
    """--mode eval, and what the same evaluations use during training."""

    eval_folder: str = option("eval", "folder in workdir for results.json", effect=PLACE)
    ckpt_file: str = option(
        "", "snapshot to evaluate, in workdir/checkpoints or a path; default the newest intact one", effect=PLACE,
        path=True,
    )  # fmt: skip
    eval_loss: bool = option(False, "evaluate the training objective on the test set", effect=PLACE)
    eval_likelihood: bool = option(False, "evaluate NELBO and NLL, what the system has of them", effect=PLACE)
    eval_quantities: str = option(
        "", "likelihoods of --eval_likelihood, by their names in results.json, with commas; default all", effect=PLACE
    )
    eval_repeats: int = option(
        1, "times that --eval_likelihood evaluates each item, with fresh noise", minimum=1, effect=VALUE
    )
    eval_split: str = option("test", "split for loss and likelihood", choices=("test", "train"), effect=VALUE)
    eval_sample: bool = option(False, "write samples and a grid", effect=PLACE)
    eval_fid: bool = option(False, "evaluate the Frechet distance, as --eval_metrics fid does", effect=PLACE)
    eval_metrics: str = option(
        "", "metrics of samples, with commas, from one set of samples: fid (Frechet distance), kid (kernel distance), "
        "is (Inception Score), pr (precision and recall); or all that detector and reference allow, as the flag alone "
        "means", effect=PLACE, alone="all",
    )  # fmt: skip
    eval_compare: bool = option(
        False, "Frechet distances and pictures of the sampler and of its teacher's with as many network evaluations "
        "(hsivi)", effect=PLACE,
    )  # fmt: skip
    eval_density: bool = option(False, "draw the model's density on a grid (points)", effect=PLACE)
    trajectory: bool = option(False, "draw how samples come about (trajectory.png)", effect=PLACE)
    eval_n_trajectories: int = option(8, "samples that --trajectory draws", minimum=1, effect=VALUE)
    eval_n_items: int = option(
        0, "test items for loss and likelihood; 0 is the whole test set (10,000 of generated data)", minimum=0,
        effect=VALUE,
    )  # fmt: skip
    eval_n_samples: int = option(64, "samples that --eval_sample writes", minimum=1, effect=VALUE)
    eval_fid_samples: int = option(50_000, "samples for the Frechet distance and others", minimum=2, effect=VALUE)
    fid_detector: str = option(
        "pixels", "feature detector: pixels; inception, the network of published FIDs; or the path of a TorchScript "
        "file", effect=VALUE, path=True,
    )  # fmt: skip
    fid_weights: str = option(
        "", "weights of --fid_detector inception (pt_inception-2015-12-05-6726825d.pth); default: from "
        "$SCOREFLEET_HOME or the user's cache, else downloaded", effect=VALUE, path=True,
    )  # fmt: skip
    fid_batch_size: int = option(64, "images that go through --fid_detector inception at once", minimum=1, effect=VALUE)
    fid_statistics: str = option(
        "", "reference statistics (.npz with mu and sigma, or features or pool_3); default: "
        "computed from the training set", effect=VALUE, path=True,
    )  # fmt: skip
    testing_batch_size: int = option(64, "samples of one evaluation chunk (loss, likelihood)", minimum=1, effect=VALUE)
    sampling_batch_size: int = option(64, "samples of one sampling chunk", minimum=1, effect=VALUE)


@dataclass(frozen=True)
class PeriodicEvaluationOptions:
    """Evaluations during training. One is due at step s when s >= its threshold and s is a multiple of its *_freq."""

    eval_freq: int = option(0, "steps between validation losses", minimum=0, effect=PLACE)
    eval_threshold: int = option(1, "first step of validation", minimum=0, effect=PLACE)
    n_eval_batches: int = option(1, "test batches of a validation during training", minimum=1, effect=PLACE)
    likelihood_freq: int = option(0, "steps between likelihood evaluations", minimum=0, effect=PLACE)
    likelihood_threshold: int = option(1, "first step of likelihood evaluation", minimum=0, effect=PLACE)
    n_likelihood_batches: int = option(1, "test batches of a likelihood evaluation", minimum=1, effect=PLACE)
    sample_freq: int = option(
        0, "steps between sample grids; 0 is with every fid and save action", minimum=0, effect=PLACE
    )
    sample_threshold: int = option(1, "first step of a sample grid", minimum=0, effect=PLACE)
    fid_freq: int = option(0, "steps between FID evaluations", minimum=0, effect=PLACE)
    fid_threshold: int = option(1, "first step of FID evaluation", minimum=0, effect=PLACE)
    fid_samples_training: int = option(20_000, "samples of an FID evaluation during training", minimum=2, effect=PLACE)
