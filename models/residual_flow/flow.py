"""The whole flow: data to latents, given a code of each image, and back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from models.flow_settings import FlowSettings
from models.residual_flow.batch_norm import SumOverRanks, on_one_rank
from models.residual_flow.noise import FlowNoise
from models.residual_flow.posterior import CodePosterior
from models.residual_flow.residual_block import InverseSettings, LogDeterminant, ResidualBlock
from models.residual_flow.squeeze import squeeze, unsqueeze


@dataclass(frozen=True)
class FlowOutput:
    """Latents and what is needed to turn their density into that of data.

    Attributes:
        z: latents, shape of the data.
        code: h, (B, code_size).
        kl: log q(h | x) - log p(h), float64 (B,), a one-sample estimate.
        log_determinants: of each block, float64 (B, n_blocks): an unbiased estimate of log|det dz/dx| ("series"), its
            value ("exact"), or something whose gradient is unbiased ("surrogate"); zeros for "none".
    """

    z: torch.Tensor
    code: torch.Tensor
    kl: torch.Tensor
    log_determinants: torch.Tensor

    @property
    def log_jacobian(self) -> torch.Tensor:
        """What a density of z needs to become a bound on that of x, float64 (B,)."""
        return self.log_determinants.sum(1) - self.kl


class InvertibleFlow(nn.Module):
    """z = F_h(x) with h from q(h | x); see the package's description for use.

    Args:
        settings: see FlowSettings.
        sum_over_ranks: replaces a float64 tensor by its sum over ranks. In training mode every pass calls it, on all
            ranks alike.
    """

    def __init__(self, settings: FlowSettings, sum_over_ranks: SumOverRanks = on_one_rank) -> None:
        super().__init__()
        self.settings = settings
        self.sum_over_ranks = sum_over_ranks
        channels, height, width = settings.input_shape
        self._scales: list[list[ResidualBlock]] = []
        self.block_shapes: list[tuple[int, int, int]] = []
        for level, n_blocks in enumerate(settings.n_blocks):
            shape = (channels * 4**level, height // 2**level, width // 2**level)
            chain = [
                ResidualBlock(shape[0], settings.hidden_channels, settings.code_size, level > 0 or i > 0)
                for i in range(n_blocks)
            ]
            self._scales.append(chain)
            self.block_shapes += [shape] * n_blocks
        # Nothing but the names: these nested modules are called one by one, from the lists.
        transforms = nn.ModuleList(nn.ModuleDict({"chain": nn.ModuleList(chain)}) for chain in self._scales)
        self.generator = nn.ModuleDict({"flow": nn.ModuleDict({"transforms": transforms})})
        self.discriminator = CodePosterior(channels, height, settings, sum_over_ranks)

    @property
    def code_size(self) -> int:
        return self.settings.code_size

    @property
    def poisson_rates(self) -> list[float]:
        """Of each block's number of terms."""
        return [block.poisson_rate for block in self.blocks()]

    def blocks(self) -> Iterator[ResidualBlock]:
        """In the order in which data go through them."""
        for chain in self._scales:
            yield from chain

    def forward(self, x: torch.Tensor, noise: FlowNoise, log_determinant: LogDeterminant) -> FlowOutput:
        """Latents of x (B, C, H, W) with all that their likelihood needs.

        Args:
            noise: see draw_flow_noise.
            log_determinant: "surrogate", "series" (no gradient), "exact" (no gradient) or "none".
        """
        with torch.autocast(x.device.type, enabled=False):
            code, kl = self.encode(x, noise.code)
            z, log_determinants = self.transform(x, code, noise, log_determinant)
        if self.training and log_determinant == "surrogate":
            self._record(log_determinants.detach(), noise.counts)
        return FlowOutput(z, code, kl, log_determinants)

    def encode(self, x: torch.Tensor, normal: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A code (B, code_size) of x by standard normal numbers, and log q - log p of it, float64 (B,)."""
        x, normal = self._to_own_dtype(x), self._to_own_dtype(normal)
        return self.discriminator(squeeze(x) if self.settings.squeeze_first else x, normal)

    def transform(
        self, x: torch.Tensor, code: torch.Tensor, noise: FlowNoise, log_determinant: LogDeterminant
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents of x given codes (B, code_size), and the blocks' log-determinants, float64 (B, n_blocks)."""
        x, code = self._to_own_dtype(x), self._to_own_dtype(code)
        values = []
        draws = zip(noise.probes, noise.counts, strict=True)
        if self.settings.squeeze_first:
            x = squeeze(x)
        for level, chain in enumerate(self._scales):
            if level > 0:
                x = squeeze(x)
            for block in chain:
                probes, count = next(draws)
                x, value = block(x, code, self._to_own_dtype(probes), count, log_determinant)
                values.append(value)
        return self._to_image(x), torch.stack(values, dim=1)

    @torch.no_grad()
    def inverse(self, z: torch.Tensor, code: torch.Tensor, settings: InverseSettings | None = None) -> torch.Tensor:
        """Data of latents z (B, C, H, W) and codes (B, code_size), without gradient.

        Raises:
            RunFailed: if the tolerance is not reached, or a value is not finite.
        """
        return self.inverse_with_iterations(z, code, settings)[0]

    @torch.no_grad()
    def inverse_with_iterations(
        self, z: torch.Tensor, code: torch.Tensor, settings: InverseSettings | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As ``inverse``, and int64 (B, n_blocks): iterations of each block, in the order of ``blocks``."""
        settings = settings or InverseSettings()
        iterations = []
        with torch.autocast(z.device.type, enabled=False):
            x, code = self._to_own_dtype(z), self._to_own_dtype(code)
            for _ in range(int(self.settings.squeeze_first) + len(self.settings.n_blocks) - 1):
                x = squeeze(x)
            for level in reversed(range(len(self._scales))):
                for block in reversed(self._scales[level]):
                    x, n_iterations = block.inverse(x, code, settings)
                    iterations.append(n_iterations)
                if level > 0:
                    x = unsqueeze(x)
            if self.settings.squeeze_first:
                x = unsqueeze(x)
        return x, torch.stack(iterations[::-1], dim=1)

    def sample_code(self, normal: torch.Tensor, by_initial_weights: bool = False) -> torch.Tensor:
        """Codes from p(h) by standard normal numbers (B, code_size).

        Args:
            by_initial_weights: as in PriorFlow.inverse.
        """
        with torch.autocast(normal.device.type, enabled=False):
            return self.discriminator.prior.inverse(self._to_own_dtype(normal), by_initial_weights)

    def _to_own_dtype(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.discriminator.fc.linear["bias"].dtype)

    def _to_image(self, x: torch.Tensor) -> torch.Tensor:
        """Undo every squeeze on the way."""
        while x.shape[1] > self.settings.image_channels:
            x = unsqueeze(x)
        return x

    @torch.no_grad()
    def _record(self, surrogates: torch.Tensor, counts: tuple[int, ...]) -> None:
        """Number of random terms, mean and mean square of the surrogates of a batch, over all ranks."""
        size = torch.full_like(surrogates[:1], len(surrogates))
        moments = torch.cat([surrogates.sum(0, keepdim=True), surrogates.square().sum(0, keepdim=True), size])
        mean, mean_square, _ = (total := self.sum_over_ranks(moments)) / total[2]
        for index, (block, count) in enumerate(zip(self.blocks(), counts, strict=True)):
            block.last_n_samples.fill_(count)
            block.last_firmom.copy_(mean[index])
            block.last_secmom.copy_(mean_square[index])
