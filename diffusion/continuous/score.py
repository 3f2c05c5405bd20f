"""From the output of a network to a score."""

from collections.abc import Callable

import torch

from diffusion.continuous.kernel import noise_multiplier
from diffusion.continuous.process import LabelledProcess, Process, ScoreFunction
from diffusion.preconditioning import preconditioned


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

    def predict(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return network(u.float(), t.float()).float()

    return preconditioned(
        predict,
        label=lambda t: t,
        output=lambda t: noise_multiplier(process, t),
        skip=process.analytic_score if mixed else None,
    )


def make_labelled_score(
    process: LabelledProcess, network: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> ScoreFunction:
    """The score of a network that sees ``process.time_label`` (Song et al., arXiv 2011.13456, Appendix H).

    Args:
        network: network(u, label), u (B, C, ...) as given to the score and label float64 (B,), to (B, C, ...): the
            score itself where ``process.output_is_score``, elsewhere the noise z of the kernel, of which the score is
            made as -z / std.

    Returns:
        score(u, t) with t float64 (B,), in the dtype of the network's output.
    """
    output = None if process.output_is_score else lambda t: noise_multiplier(process, t)
    return preconditioned(network, label=process.time_label, output=output)
