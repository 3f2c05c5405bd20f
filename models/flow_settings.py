"""Options of the residual flow."""

from __future__ import annotations

from dataclasses import dataclass

from util.errors import UsageError
from util.option import option

SMALLEST_SIDE = 4


@dataclass(frozen=True)
class FlowSettings:
    """Normalizing flow: what determines it; the defaults are those of CIFAR-10, except for the image.

    Attributes:
        image_channels, image_size: of data and latents.
        squeeze_first: flow and encoder see the squeezed image (CelebA-64).
        n_blocks: residual blocks at each resolution, the finest first.
        hidden_channels: of the blocks.
        code_size: entries of h.
        encoder_planes: channels of the encoder's levels.
        encoder_out_planes: channels of its result.
        prior_hidden_size: width of the networks in p(h).
        n_prior_steps: steps of p(h).

    Raises:
        UsageError: settings from which no flow can be built, in one line.
    """

    image_channels: int
    image_size: int
    squeeze_first: bool = option(
        False, "let the flow see four channels of half the resolution for each channel", flag="flow_squeeze"
    )
    n_blocks: tuple[int, ...] = option(
        (16, 16), "residual blocks at each resolution of the flow", minimum=1, flag="flow_blocks"
    )
    hidden_channels: int = option(512, "hidden channels of the flow's blocks", minimum=1, flag="flow_channels")
    code_size: int = option(64, "numbers of the code that the flow is conditioned on", minimum=2)
    encoder_planes: tuple[int, ...] = option((48, 96, 96), "channels of each level of the code's encoder", minimum=1)
    encoder_out_planes: int = option(8, "channels of the encoder's result", minimum=1)
    prior_hidden_size: int = option(
        256, "width of the networks of the code's prior", minimum=1, flag="code_prior_channels"
    )
    n_prior_steps: int = option(2, "steps of the code's prior", minimum=1, flag="n_code_prior_steps")

    def __post_init__(self) -> None:
        positive = ("image_channels", "image_size", "hidden_channels", "code_size", "encoder_out_planes")
        for name in (*positive, "prior_hidden_size", "n_prior_steps"):
            if getattr(self, name) < 1:
                raise UsageError(f"flow: {name} is {getattr(self, name)}; it has to be at least 1")
        for name in ("n_blocks", "encoder_planes"):
            if not getattr(self, name) or min(getattr(self, name)) < 1:
                raise UsageError(f"flow: {name} is {list(getattr(self, name))}; give numbers of at least 1")
        if self.code_size % 2:
            raise UsageError(f"flow: code_size is {self.code_size}; its couplings need an even number")
        factor = 2 ** (len(self.n_blocks) - 1 + int(self.squeeze_first))
        coarsest = self.image_size // factor
        if self.image_size % factor or coarsest < SMALLEST_SIDE:
            raise UsageError(
                f"flow: an image of {self.image_size} does not suit {len(self.n_blocks)} resolutions"
                f"{' after a squeeze' if self.squeeze_first else ''}; the coarsest needs at least {SMALLEST_SIDE} "
                f"pixels a side: use a multiple of {factor} from {SMALLEST_SIDE * factor} on, or fewer"
            )

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the first block and the encoder see."""
        if self.squeeze_first:
            return 4 * self.image_channels, self.image_size // 2, self.image_size // 2
        return self.image_channels, self.image_size, self.image_size
