"""Options of ``--system scoreflow`` and of its dequantizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from trainers.options import PredictorCorrectorOptions, ScoreModelOptions, VarianceExplodingOptions
from util.option import PLACE, VALUE, option


@dataclass(frozen=True)
class ScoreFlowOptions(ScoreModelOptions, VarianceExplodingOptions, PredictorCorrectorOptions):
    """Maximum-likelihood training of score models (scoreflow), and the bound on their likelihood."""

    published_keys: ClassVar[dict[str, Any]] = {"mixed_score": False}

    sde: str = option(
        "vpsde", "variance preserving, sub-variance preserving, variance exploding",
        choices=("vpsde", "subvpsde", "vesde"),
    )  # fmt: skip
    weighting: str = option(
        "reweightedv2", "weighting of the loss over time", choices=("likelihood", "reweightedv2")
    )
    reduce_mean: bool = option(True, "mean over the numbers of an image; false takes half their sum")
    sampling_method: str = option(
        "ode", "probability-flow ODE, predictor-corrector", choices=("ode", "pc"), effect=VALUE
    )
    n_discrete_steps: int = option(500, "steps of the chain (pc)", minimum=1, effect=VALUE)
    bound_n_times: int = option(
        1000, "times at which the bound is evaluated for each image", minimum=1, effect=VALUE
    )
    bound_form: str = option("dsm", "denoising or sliced score matching", choices=("dsm", "ssm"), effect=VALUE)
    bound_importance_sampling: bool = option(
        True, "draw the bound's times in proportion to their weight: same bound, less variance", effect=VALUE
    )
    bound_offset: bool = option(
        True, "bound the likelihood of the data, not of the data with the noise of likelihood_eps", effect=VALUE
    )


@dataclass(frozen=True)
class DequantizerOptions:
    """Variational dequantization: --mode train_deq trains it, --eval_dequantizer uses it."""

    eval_dequantizer: bool = option(
        False, "likelihoods with the trained dequantizer's noise instead of uniform noise", effect=VALUE
    )
    dequantizer_ckpt_file: str = option(
        "", "with --eval_dequantizer: snapshot in workdir/dequantizer/checkpoints or a path; default the newest intact "
        "one", effect=PLACE, path=True,
    )  # fmt: skip
    score_checkpoint: str = option(
        "", "with --mode train_deq: snapshot of the score model in workdir/checkpoints or a path; default the one that "
        "the run began with, at first the newest intact one", effect=PLACE, path=True,
    )  # fmt: skip
