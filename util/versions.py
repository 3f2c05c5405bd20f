"""Versions of what a result depends on."""

from __future__ import annotations

import platform
from functools import cache

import numpy as np
import torch

SCOREFLEET = "0.1.0"


@cache
def versions() -> dict[str, str]:
    """Scorefleet, Python, torch, numpy and, where there is one, CUDA."""
    return {
        "scorefleet": SCOREFLEET,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "cuda": str(torch.version.cuda),
    }
