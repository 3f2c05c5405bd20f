"""From the output of a network to a score."""

from collections.abc import Callable

import torch

from diffusion.kernel import noise_multiplier
from diffusion.process import Process, ScoreFunction, expand


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
