"""Options of the dequantizer."""

from __future__ import annotations

from dataclasses import dataclass

from util.errors import UsageError
from util.option import training_option


@dataclass(frozen=True)
class DequantizerSettings:
    """Dequantizer: settings of its flow; the defaults are those of the CIFAR-10 architecture.

    Attributes:
        image_shape: (C, H, W).
        architecture: "cifar10" (plain convolutions, invertible maps of the channels, shallow context) or "imagenet32"
            (weight normalisation, no such maps, deep context).
        n_couplings: steps of the flow.
        n_filters, n_blocks, n_heads: width, blocks and attention heads of each coupling's network.
        n_components: logistics in each mixture.
        context_channels, n_context_blocks, n_context_heads: of the context network.
        floored: floors in logarithms, as ``MixtureCoupling`` and ``ActivationNorm`` say.

    Raises:
        UsageError: sizes that cannot work together.
    """

    image_shape: tuple[int, int, int]
    architecture: str = training_option(
        "cifar10", "plain convolutions, maps of the channels and a shallow context, or weight normalisation, no such "
        "maps and a deep context", choices=("cifar10", "imagenet32"), flag="dequantizer_architecture",
    )  # fmt: skip
    n_couplings: int = training_option(4, "steps of the flow", minimum=1, flag="dequantizer_n_couplings")
    n_filters: int = training_option(96, "width of each coupling's network", minimum=1, flag="dequantizer_n_filters")
    n_blocks: int = training_option(2, "blocks of each coupling's network", minimum=1, flag="dequantizer_n_blocks")
    n_components: int = training_option(32, "logistics in each mixture", minimum=1, flag="dequantizer_n_components")
    n_heads: int = training_option(
        4, "attention heads of each coupling's network", minimum=1, flag="dequantizer_n_heads"
    )
    context_channels: int = training_option(
        32, "width of the context network", minimum=1, flag="dequantizer_context_channels"
    )
    n_context_blocks: int = training_option(
        3, "blocks of the context network", minimum=1, flag="dequantizer_n_context_blocks"
    )
    n_context_heads: int = training_option(
        4, "attention heads of the context network (imagenet32)", minimum=1, flag="dequantizer_n_context_heads"
    )
    floored: bool = False

    def __post_init__(self) -> None:
        if self.image_shape[2] % 2:
            raise UsageError(
                f"image_size {self.image_shape[2]}: the dequantizer's flow pairs columns; use an even image size"
            )
        if self.n_filters % self.n_heads:
            raise UsageError(
                f"dequantizer_n_filters {self.n_filters} cannot be shared among {self.n_heads} heads; use a multiple "
                "of dequantizer_n_heads"
            )
        if self.architecture == "imagenet32" and self.context_channels % self.n_context_heads:
            raise UsageError(
                f"dequantizer_context_channels {self.context_channels} cannot be shared among {self.n_context_heads} "
                "heads; use a multiple of that"
            )

    @property
    def weight_norm(self) -> bool:
        """Whether convolutions have weight normalisation."""
        return self.architecture == "imagenet32"
