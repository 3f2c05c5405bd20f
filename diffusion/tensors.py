"""Shapes that all wings need."""

import torch


def expand(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """One value per sample, (B,), as (B, 1, ..., 1) with as many axes as ``like``."""
    return values.reshape(-1, *[1] * (like.dim() - 1))
