"""Options of ``--system indm``; those of the flow stand beside it (``models.flow_settings``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from trainers.options import PredictorCorrectorOptions, ScoreModelOptions, VarianceExplodingOptions
from util.option import VALUE, option, training_option


@dataclass(frozen=True)
class IndmOptions(ScoreModelOptions, VarianceExplodingOptions, PredictorCorrectorOptions):
    """A flow and the diffusion of its latents, trained together (indm)."""

    published_keys: ClassVar[dict[str, Any]] = {"mixed_score": False}

    sde: str = option(
        "vpsde", "diffusion of the latents: variance preserving, variance exploding", choices=("vpsde", "vesde")
    )
    weighting: str = option(
        "reweightedv2", "weighting of the loss over time", choices=("likelihood", "reweightedv2")
    )
    reduce_mean: bool = option(True, "mean over the numbers of an image; false takes their sum")
    step_function: str = option(
        "nll", "one update of both networks on the bound, or (fid) of the flow on the bound and then of the score "
        "network on its own loss", choices=("nll", "fid"),
    )  # fmt: skip
    reconstruction_loss: bool = option(False, "add to the objective what times below loss_eps leave out")
    soft_truncation: bool = option(False, "draw the smallest training time anew for every step, from loss_eps on")
    soft_truncation_exponent: float = option(
        1.2, "the density of the smallest time falls with this power of it (soft_truncation)", minimum=1.0
    )
    flow_learning_rate: float = training_option(1e-3, "learning rate of the flow after warm-up", above=0.0)
    flow_ema_rate: float = training_option(0.999, "decay of the flow's weight average", minimum=0.0, maximum=1.0)
    flow_inverse_tolerance: float = option(
        1e-5, "largest error of each block's inverse, relative to 1 + the largest value of a sample", above=0.0,
        maximum=0.1, effect=VALUE,
    )  # fmt: skip
    sampling_method: str = option(
        "ode", "probability-flow ODE, predictor-corrector", choices=("ode", "pc"), effect=VALUE
    )
    n_discrete_steps: int = option(500, "steps of the chain (pc)", minimum=1, effect=VALUE)
    snr_scheduling: str = option(
        "linear", "from begin_snr to end_snr over the sampling steps, or always snr (pc)", choices=("linear", "none"),
        effect=VALUE,
    )  # fmt: skip
    begin_snr: float = option(
        0.0, "signal-to-noise ratio at the first step; 0 is snr (pc)", minimum=0.0, effect=VALUE
    )
    end_snr: float = option(
        0.0, "signal-to-noise ratio after the last step; 0 is snr (pc)", minimum=0.0, effect=VALUE
    )
    pc_denoise: bool = option(
        False, "step from time to time of the continuous process and end with a denoising step of its own (pc)",
        effect=VALUE,
    )  # fmt: skip
    pc_denoise_time: float = option(
        -1.0, "time that the denoising step goes to, below sampling_eps; also negative ones (pc_denoise)",
        minimum=-1000.0, maximum=0.5, effect=VALUE,
    )  # fmt: skip
    temperature: float = option(1.0, "factor of the latents before the flow's inverse", above=0.0, effect=VALUE)
    data_mean: bool = option(False, "start sampling around the mean latent of the training data", effect=VALUE)
    data_mean_items: int = option(50_000, "training images for data_mean", minimum=1, effect=VALUE)
