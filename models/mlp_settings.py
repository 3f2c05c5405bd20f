"""Options of the network for points."""

from __future__ import annotations

from dataclasses import dataclass

from util.option import option


@dataclass(frozen=True)
class MLPSettings:
    """Network for points (name mlp).

    Attributes:
        in_features: numbers per state.
        out_features: numbers per output.
        n_hidden: width.
        n_layers: residual blocks.
    """

    in_features: int
    out_features: int
    n_hidden: int = option(256, "width", minimum=1)
    n_layers: int = option(4, "hidden blocks", minimum=1)
