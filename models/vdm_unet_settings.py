"""Options of the network of variational diffusion models."""

from __future__ import annotations

from dataclasses import dataclass

from util.errors import UsageError
from util.option import option, training_option

N_GROUPS = 32


@dataclass(frozen=True)
class VDMUNetSettings:
    """U-Net of variational diffusion models (name vdm_unet): what determines it; checked when it is made.

    Attributes:
        n_image_channels: C.
        gamma_min, gamma_max: ends of log-SNR time, between which the time embedding runs from 0 to 1000.
        n_channels: width n of every layer.
        n_resblocks: residual blocks on the way down; the way up has one more.
        with_attention: attention after every residual block, not only in the middle.
        with_fourier_features: sines and cosines of the input, 4 C channels more.
        dropout: probability.

    Raises:
        UsageError: a value outside its range, in one line.
    """

    n_image_channels: int
    gamma_min: float
    gamma_max: float
    n_channels: int = option(128, "width of every layer", minimum=4)
    n_resblocks: int = option(8, "residual blocks on the way down; the way up has one more", minimum=1)
    with_attention: bool = option(False, "attention after every block, not only in the middle")
    with_fourier_features: bool = option(True, "sines and cosines of the image as further inputs")
    dropout: float = training_option(0.1, "dropout probability", minimum=0.0, maximum=0.999)

    def __post_init__(self) -> None:
        if self.n_channels < N_GROUPS or self.n_channels % N_GROUPS:
            raise UsageError(f"n_channels {self.n_channels} does not suit name vdm_unet; use a multiple of {N_GROUPS}")
        if self.n_resblocks < 1 or self.n_image_channels < 1:
            raise UsageError("name vdm_unet needs at least one channel and one residual block (n_resblocks)")
        if not self.gamma_min < self.gamma_max:
            raise UsageError(f"gamma_min {self.gamma_min:g} has to be below gamma_max {self.gamma_max:g}")
        if not 0.0 <= self.dropout < 1.0:
            raise UsageError(f"dropout is {self.dropout}; it has to be at least 0 and below 1")
