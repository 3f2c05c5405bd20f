"""The rule that makes weights for the Inception network, so that recorded files need not hold them."""

import zlib

import numpy as np
import torch

from models.inception import Inception


def weights(salt: str) -> dict[str, torch.Tensor]:
    """A state_dict with the names and shapes of the public weight files, float32."""
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in Inception().state_dict().items()}
    return {name: _values(name, shapes[name], salt) for name in sorted(shapes)}


def _values(name: str, shape: tuple[int, ...], salt: str) -> torch.Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.int64)
    n = np.random.Generator(np.random.PCG64(zlib.crc32((salt + name).encode()))).standard_normal(shape)
    if name.endswith("conv.weight"):
        n = n * np.sqrt(2.0 / np.prod(shape[1:]))
    elif name.endswith("bn.weight"):
        n = 1.0 + 0.1 * n
    elif name.endswith("running_var"):
        n = np.exp(0.2 * n)
    elif name == "fc.weight":
        n = n / np.sqrt(shape[1])
    else:
        n = 0.1 * n
    return torch.from_numpy(n.astype(np.float32))
