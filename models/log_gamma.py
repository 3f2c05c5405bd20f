"""The learned spread of HSIVI's conditional layers, a parameter of the network that they share (arXiv 2310.17153)."""

from __future__ import annotations

import torch
from torch import nn

LOG_GAMMA = "log_scaled_gamma"
"""Its name in the state_dict, as in published checkpoints."""


def add_log_gamma(network: nn.Module, shape: tuple[int, ...]) -> nn.Parameter:
    """Give a network the logarithm of the factor on the layers' spread, zeros, as the first of its parameters.

    Args:
        network: with submodules only; it does not look at the new parameter.
        shape: as ``diffusion.discrete.hsivi.log_gamma_shape`` gives it.
    """
    device = next(network.parameters()).device
    network.register_parameter(LOG_GAMMA, nn.Parameter(torch.zeros(shape, device=device)))
    return network.get_parameter(LOG_GAMMA)
