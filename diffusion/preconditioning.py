"""A network between scalings of its input, its output and its label."""

from collections.abc import Callable

import torch

from diffusion.tensors import expand

Function = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Of a state (B, C, ...) and times (B,); the result has the shape of the data."""

OfTime = Callable[[torch.Tensor], torch.Tensor]
"""Of times float64 (B,), like them."""


def preconditioned(
    network: Function,
    *,
    label: OfTime,
    output: OfTime | None = None,
    input: OfTime | None = None,
    skip: Function | None = None,
) -> Function:
    """D(u, t) = skip(u, t) + output(t) F(input(t) u, label(t)) (Karras et al., arXiv 2206.00364, Eq. 7).

    With EDM's c_skip, c_out, c_in and c_noise D is their denoiser; with a kernel's -1 / std for ``output`` it is the
    score of a network that predicts noise; with ``label`` alone, the velocity of flow matching.

    Args:
        network: F.
        label: what the network is told of the time.
        output, input: factors, rounded to the dtype of what they multiply; None is 1.
        skip: what is added, such as c_skip(t) u or the score of a Gaussian; None is nothing.
    """

    def call(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        value = network(u if input is None else expand(input(t).to(u.dtype), u) * u, label(t))
        if output is not None:
            value = expand(output(t).to(value.dtype), value) * value
        return value if skip is None else skip(u, t) + value

    return call
