"""The one place that knows how grey levels become data, and nats become bits per dimension."""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class PixelScale:
    """How grey levels 0 to n_levels - 1 lie in data space: on [-1, 1] where ``centered``, else on [0, 1]."""

    n_levels: int = 256
    centered: bool = True

    @property
    def offset(self) -> float:
        """Bits/dim to add to a density in data space: log2 of the number of levels in a unit of length."""
        return math.log2(self.n_levels / (2 if self.centered else 1))

    def dequantize(self, pixels: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        """Uniform dequantization (Theis et al., arXiv 1511.01844, Section 3.1).

        Args:
            pixels: uint8 of any shape.
            uniform: float32 in [0, 1), same shape.

        Returns:
            float32 data, same shape.
        """
        unit = (pixels.float() + uniform) / self.n_levels
        return 2 * unit - 1 if self.centered else unit

    def centers(self, levels: torch.Tensor) -> torch.Tensor:
        """Where integer levels of any shape lie in data space: the middle of their interval, float64."""
        unit = (levels.double() + 0.5) / self.n_levels
        return 2 * unit - 1 if self.centered else unit

    def nearest_levels(self, x: torch.Tensor) -> torch.Tensor:
        """The levels whose centers are nearest to data of any shape, int64, 0 to n_levels - 1."""
        unit = (x.double() + 1) / 2 if self.centered else x.double()
        return (unit * self.n_levels).floor().clamp(0, self.n_levels - 1).long()

    def to_data(self, pixels: torch.Tensor) -> torch.Tensor:
        """Grey levels, uint8 of any shape, as float32 data without noise: 0 and n_levels - 1 are the ends of the
        interval."""
        unit = pixels.float() / (self.n_levels - 1)
        return 2 * unit - 1 if self.centered else unit

    def to_unit_interval(self, x: torch.Tensor) -> torch.Tensor:
        """Data of any shape on [0, 1], clipped; NaN stays NaN."""
        return ((x + 1) / 2 if self.centered else x).clamp(0, 1)


def gaussian_entropy(variance: float, n_dimensions: int) -> float:
    """Entropy of N(0, variance I) in nats."""
    return 0.5 * n_dimensions * (1 + math.log(2 * math.pi * variance))


def in_bits_per_dimension(
    terms: dict[str, torch.Tensor], n_dimensions: int, scale: PixelScale | None
) -> dict[str, torch.Tensor]:
    """Terms in nats as terms in bits/dim of the grey levels.

    Args:
        terms: each float64 (B,).
        n_dimensions: of the data (C H W), velocities not counted.
        scale: for terms of a density in data space, to which the change of units adds the term "scaling"; None for
            terms of the probability of grey levels.
    """
    converted = {name: values / (n_dimensions * math.log(2)) for name, values in terms.items()}
    if scale is None:
        return converted
    scaling = torch.full_like(next(iter(terms.values())), scale.offset)
    return {**converted, "scaling": scaling}
