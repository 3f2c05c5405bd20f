"""Resolution traded for channels."""

import torch
import torch.nn.functional as F


def squeeze(x: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) to (B, 4 C, H / 2, W / 2): y[b, 4 c + 2 i + j, p, q] = x[b, c, 2 p + i, 2 q + j]."""
    return F.pixel_unshuffle(x, 2)


def unsqueeze(y: torch.Tensor) -> torch.Tensor:
    """The inverse of ``squeeze``."""
    return F.pixel_shuffle(y, 2)
