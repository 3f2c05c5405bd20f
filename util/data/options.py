"""Options of data sets."""

from __future__ import annotations

from dataclasses import dataclass

from util.option import PLACE, option, training_option


@dataclass(frozen=True)
class DataOptions:
    """Data sets."""

    dataset: str = option(
        "digits", "data set",
        choices=("multimodal_swissroll", "diamond", "digits", "mnist", "cifar10", "imagenet32", "imagenet_64",
                 "celeba_64", "celeba_256", "lmdb", "folder"), evaluated_anew=True,
    )  # fmt: skip
    data_location: str = option("data", "folder of the data set's files", effect=PLACE, path=True)
    is_image: bool = option(True, "images, or points of dimension data_dim")
    image_size: int = option(32, "height and width in pixels", minimum=1)
    image_channels: int = option(3, "colour channels", choices=(1, 3))
    center_image: bool = option(True, "scale images to [-1, 1] rather than [0, 1]")
    data_dim: int = option(2, "dimension of points", minimum=1)
    random_flip: bool = training_option(False, "flip training images left to right with probability 1/2")
    uniform_dequantization: bool = option(
        False, "add uniform noise within one grey level to training images, as the likelihood evaluation does"
    )
    n_workers: int = option(0, "data-loader processes of each rank", minimum=0, effect=PLACE)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one item: (C, H, W) of an image, (D,) of a point."""
        return (self.image_channels, self.image_size, self.image_size) if self.is_image else (self.data_dim,)
