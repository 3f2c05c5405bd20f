"""Augmentation that the network is told of, so that it need not model augmented images (VDM, arXiv 2107.00630,
Appendix I)."""

from __future__ import annotations

import torch

from util.noise import Noise


def flip_and_rotate(images: torch.Tensor, noise: Noise) -> tuple[torch.Tensor, torch.Tensor]:
    """Flip left to right with probability 1/2, then turn by 90, 180 or 270 degrees with probability 1/2.

    Args:
        images: square (B, C, H, H).
        noise: one entry for each image.

    Returns:
        The images, and float32 (B,): 1 where anything was applied, else 0.
    """
    flipped = noise.uniform() < 0.5
    turns = torch.where(noise.uniform() < 0.5, 1 + noise.integers(3), 0)
    images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
    for n_turns in (1, 2, 3):
        images = torch.where((turns == n_turns)[:, None, None, None], images.rot90(n_turns, (-2, -1)), images)
    return images, (flipped | (turns > 0)).float()
