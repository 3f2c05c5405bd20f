"""From the output of a network to a score."""

from collections.abc import Callable

import torch

from diffusion.continuous.kernel import noise_multiplier
from diffusion.continuous.process import Process, ScoreFunction, expand
from diffusion.continuous.ve import VarianceExploding

LABEL_SCALE = 999.0
"""Time labels of networks that were made for chains of 1,000 steps run from 0 to this."""


def make_score(
    process: Process, network: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], *, mixed: bool
) -> ScoreFunction:
    """The score n(t) y, plus the analytic part where ``mixed``, of a network that predicts noise y.

    The network sees state and forward time rounded to float32, and the multiplier is rounded to float32
    (Dockhorn et al., arXiv 2112.07068, Section 3.2).

    Args:
        network: network(u, t), u float32 (B, k C, ...) and t float32 (B,), to (B, C, ...) in any floating
            dtype.
        mixed: add ``process.analytic_score``.

    Returns:
        score(u, t) with t float64 (B,); the score is float32, or float64 where u is and ``mixed``.
    """

    def score(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        output = network(u.float(), t.float()).float()
        learned = expand(noise_multiplier(process, t).float(), output) * output
        return process.analytic_score(u, t) + learned if mixed else learned

    return score


def time_label(process: Process, t: torch.Tensor) -> torch.Tensor:
    """What networks of the score-based models of Song et al. (arXiv 2011.13456, Appendix H) are told of the time: sigma
    for the variance-exploding process, 999 t for others. t float64 (B,), result like t."""
    return process.sigma(t) if isinstance(process, VarianceExploding) else LABEL_SCALE * t


def make_labelled_score(
    process: Process, network: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> ScoreFunction:
    """The score of a network that sees ``time_label`` (Song et al., arXiv 2011.13456, Appendix H).

    Args:
        network: network(u, label), u (B, C, ...) as given to the score and label float64 (B,), to (B, C, ...). For the
            variance-exploding process that is the score itself, for others the noise z of the kernel, of which the
            score is made as -z / std.

    Returns:
        score(u, t) with t float64 (B,), in the dtype of the network's output.
    """

    def score(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        output = network(u, time_label(process, t))
        if isinstance(process, VarianceExploding):
            return output
        return expand(noise_multiplier(process, t).to(output.dtype), output) * output

    return score
