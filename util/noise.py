"""Random numbers as a function of (seed, purpose, step, sample index), with nothing carried from draw to draw.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) on integer tensors. A draw
for sample i is the same number on one rank or on sixty-four and in any batch, and a resumed run needs no saved
generator state.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch

_MASK = 0xFFFFFFFF
_MULTIPLIER_0, _MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed for anything named by ``parts``, e.g. ``derive_seed(seed, "epoch order", epoch)``."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def philox(counter: Sequence[torch.Tensor], key: tuple[int, int]) -> list[torch.Tensor]:
    """Ten rounds of Philox4x32.

    Args:
        counter: four int64 tensors that broadcast to one shape, values in [0, 2**32).
        key: two integers in [0, 2**32).

    Returns:
        Four int64 tensors of 32 random bits each.
    """
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    k0, k1 = key
    for _ in range(10):
        # int64 products wrap modulo 2**64, so both 32-bit halves are right although the sign bit may be set.
        p0, p1 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL_0) & _MASK, (k1 + _WEYL_1) & _MASK
    return [c0, c1, c2, c3]


class Noise:
    """A stream of draws for a batch of samples; the n-th call gives the n-th draw of every sample.

    Args:
        seed: the run's seed.
        purpose: what the draws are for, e.g. ``"train"`` or ``"sample"``; other purposes are independent.
        indices: int64 (B,), the global index of each sample.
        step: training step, or 0 in evaluation.
        device: where draws are made.
    """

    def __init__(
        self, seed: int, purpose: str, indices: torch.Tensor, step: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        key = derive_seed(seed, purpose, step)
        self.key = (key & _MASK, (key >> 32) & _MASK)
        self.indices = indices.to(device=device, dtype=torch.int64)
        self.device = torch.device(device)
        self.n_draws = 0

    def __len__(self) -> int:
        return len(self.indices)

    def shared(self) -> Noise:
        """A stream on the CPU with a single entry, the same for whichever samples of this seed, purpose and step: for
        what a batch, a step or a whole evaluation has only one of."""
        # No sample has a negative index.
        stream = Noise(0, "", torch.tensor([-1]))
        stream.key = self.key
        return stream

    def _bits(self, n_words: int) -> torch.Tensor:
        """int64 (B, n_words), 32 random bits in each entry."""
        blocks = torch.arange(-(-n_words // 4), device=self.device)
        words = philox(
            (
                blocks[None, :],
                torch.full((1, 1), self.n_draws, device=self.device),
                (self.indices & _MASK)[:, None],
                ((self.indices >> 32) & _MASK)[:, None],
            ),
            self.key,
        )
        self.n_draws += 1
        return torch.stack(words, dim=-1).flatten(1)[:, :n_words]

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Standard normals (B, *shape), by Box and Muller in float64, rounded to ``dtype``."""
        n = math.prod(shape)
        n_pairs = -(-n // 2)
        uniform = (self._bits(2 * n_pairs).double() + 0.5) * 2.0**-32
        radius = (-2.0 * uniform[:, :n_pairs].log()).sqrt()
        angle = (2.0 * math.pi) * uniform[:, n_pairs:]
        values = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :n]
        return values.to(dtype).reshape(-1, *shape)

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Uniform numbers (B, *shape) on [0, 1); float32 draws have 24 random bits, float64 draws 53."""
        n = math.prod(shape)
        if dtype == torch.float64:
            words = self._bits(2 * n)
            values = ((words[:, :n] << 21) | (words[:, n:] >> 11)).double() * 2.0**-53
        else:
            values = (self._bits(n) >> 8).float() * 2.0**-24
        return values.to(dtype).reshape(-1, *shape)

    def rademacher(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Random signs (B, *shape), +1 or -1 with equal probability."""
        return ((self._bits(math.prod(shape)) & 1) * 2 - 1).to(dtype).reshape(-1, *shape)

    def integers(self, high: int, *shape: int) -> torch.Tensor:
        """Uniform integers int64 (B, *shape) in [0, high), high < 2**31."""
        return ((self._bits(math.prod(shape)) * high) >> 32).reshape(-1, *shape)
