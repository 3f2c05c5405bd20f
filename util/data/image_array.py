"""Images held in memory."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch


@dataclass(frozen=True)
class ImageArray:
    """A data set that is one array.

    Attributes:
        images: uint8 (N, C, H, W).
    """

    name: str
    images: torch.Tensor
    is_image: bool = field(default=True, init=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.images.shape[1:])

    @property
    def length(self) -> int:
        return len(self.images)

    def read(self, indices: np.ndarray) -> torch.Tensor:
        """uint8 (B, C, H, W), a copy."""
        return self.images[torch.from_numpy(indices)]
