"""Options of ``--system idode``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from trainers.options import LearningRateOptions, LikelihoodOptions, OdeSamplingOptions
from util.option import VALUE, option, training_option


@dataclass(frozen=True)
class IdodeOptions(LearningRateOptions, OdeSamplingOptions, LikelihoodOptions):
    """Diffusion in log-SNR time (idode)."""

    published_keys: ClassVar[dict[str, Any]] = {"sampling_method": "ode", "weighting": "likelihood"}

    sde: str = option("vpsde", "variance preserving, straight path", choices=("vpsde", "sp"))
    gamma_min: float = option(-13.3, "-log SNR at the data", minimum=-100.0, maximum=100.0)
    gamma_max: float = option(5.0, "-log SNR at the prior", minimum=-100.0, maximum=100.0)
    velocity: bool = option(True, "predict the velocity of the ODE rather than the noise")
    importance_sampling: bool = option(
        False, "draw training times in proportion to their weight: same objective, less variance"
    )
    antithetic_time_sampling: bool = training_option(
        True, "spread the training times of a step evenly over its global batch"
    )
    second_order: bool = option(
        False, "add the second-order objective; to fine-tune, --mode continue with it and more n_train_iters"
    )
    second_order_weight: float = option(0.1, "weight of the second-order objective", above=0.0)
    learning_rate_decay: bool = training_option(
        False, "let the learning rate fall linearly to 1e-8 at n_train_iters"
    )
    augmentation: bool = training_option(
        False, "flip and rotate training images, each with probability 1/2, and tell the network"
    )
    dequantization: str = option(
        "truncated_normal", "dequantization of the likelihood (negative_log_likelihood)",
        choices=("uniform", "variational", "truncated_normal"), effect=VALUE,
    )  # fmt: skip
    n_importance_samples: int = option(
        1, "dequantized images that the likelihood of one image is estimated from", minimum=1, effect=VALUE
    )
