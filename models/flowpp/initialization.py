"""Data-dependent initialisation (Salimans and Kingma, arXiv 1602.07868, Section 3) as one explicit pass."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from models.flowpp.bijections import ActivationNorm
from models.flowpp.layers import WEIGHT_DEVIATION, Convolution, NormalizedConvolution, Sum
from util.noise import derive_seed


@torch.no_grad()
def initialize_from_data(
    network: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    total: Sum,
    *,
    seed: int = 0,
    draws_twice: bool = False,
) -> None:
    """Scale the drawn weights of a network so that each layer's output is normalised on one batch.

    Layer after layer in the order of the forward pass, each sees its input as the layers before it, initialised
    already, make it. Everything is computed in float64, so that how the batch is spread over places changes nothing in
    float32.

    Args:
        network: with freshly drawn float32 weights, on its device; changed in place.
        inputs: of its forward pass: the part of the batch that is here.
        total: adds up a float64 tensor over all the places that hold a part; called equally often at each of them.
        seed: of the second draw.
        draws_twice: the statistics behind the biases of plain layers come from a second draw of their weights.
    """
    double = copy.deepcopy(network).double()

    def initialize(name: str, module: nn.Module, layer_inputs: tuple[Any, ...]) -> None:
        if isinstance(module, Convolution):
            second_draw = _draw(module.weight, derive_seed(seed, name)) if draws_twice else None
            module.initialize(layer_inputs[0], total, second_draw)
        elif isinstance(module, NormalizedConvolution | ActivationNorm):
            module.initialize(layer_inputs[0], total)

    for name, module in double.named_modules():
        module.register_forward_pre_hook(lambda module, inputs, name=name: initialize(name, module, inputs))
    double(*(entry.double() for entry in inputs))
    for parameter, value in zip(network.parameters(), double.parameters(), strict=True):
        parameter.copy_(value)


def _draw(like: torch.Tensor, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return WEIGHT_DEVIATION * torch.randn(like.shape, generator=generator).to(like)
