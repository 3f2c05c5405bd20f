"""The Inception network of the original Frechet Inception Distance (TensorFlow graph of 2015-12-05).

Inception v3 (Szegedy et al., CVPR 2016) with that graph's pooling and 1,008 classes. Names of the state_dict are those
of the public weight files, so that such a file loads strictly.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

SIZE = 299
N_FEATURES, N_CLASSES = 2048, 1008


def resize(images: torch.Tensor, size: int = SIZE) -> torch.Tensor:
    """Bilinear as in TensorFlow 1: no half-pixel centres, corners not aligned, also where images get smaller.

    Args:
        images: floating-point (B, C, H, W).
        size: of both sides of the result.

    Returns:
        (B, C, size, size) of the same dtype; pixel i of a side lies at i H / size of the original, where the graph has
        H / size in float32.
    """
    for axis in (2, 3):
        length = images.shape[axis]
        scale = torch.tensor(length / size, dtype=torch.float32).item()
        places = torch.arange(size, dtype=torch.float64, device=images.device) * scale
        below = places.floor().long().clamp(max=length - 1)
        above = (below + 1).clamp(max=length - 1)
        part = (places - below).to(images.dtype).reshape([-1 if other == axis else 1 for other in range(4)])
        low = images.index_select(axis, below)
        images = low + (images.index_select(axis, above) - low) * part
    return images


class Convolution(nn.Module):
    """Convolution without bias, batch normalisation, ReLU. ``same`` keeps the size; else nothing is padded."""

    def __init__(self, n_in: int, n_out: int, kernel: tuple[int, int], stride: int = 1, same: bool = True) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if same else 0
        self.conv = nn.Conv2d(n_in, n_out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(n_out, eps=1e-3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn(self.conv(x)))


def _average(x: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _halve(x: torch.Tensor) -> torch.Tensor:
    return F.max_pool2d(x, 3, stride=2)


class BlockA(nn.Module):
    """35 x 35: 1x1, 5x5 and two 3x3 convolutions beside an average pool."""

    def __init__(self, n_in: int, n_pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Convolution(n_in, 64, (1, 1))
        self.branch5x5_1 = Convolution(n_in, 48, (1, 1))
        self.branch5x5_2 = Convolution(48, 64, (5, 5))
        self.branch3x3dbl_1 = Convolution(n_in, 64, (1, 1))
        self.branch3x3dbl_2 = Convolution(64, 96, (3, 3))
        self.branch3x3dbl_3 = Convolution(96, 96, (3, 3))
        self.branch_pool = Convolution(n_in, n_pooled, (1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, three, self.branch_pool(_average(x))], dim=1)


class BlockB(nn.Module):
    """35 x 35 to 17 x 17."""

    def __init__(self, n_in: int) -> None:
        super().__init__()
        self.branch3x3 = Convolution(n_in, 384, (3, 3), stride=2, same=False)
        self.branch3x3dbl_1 = Convolution(n_in, 64, (1, 1))
        self.branch3x3dbl_2 = Convolution(64, 96, (3, 3))
        self.branch3x3dbl_3 = Convolution(96, 96, (3, 3), stride=2, same=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, _halve(x)], dim=1)


class BlockC(nn.Module):
    """17 x 17: 7x7 convolutions as pairs of 1x7 and 7x1, beside an average pool."""

    def __init__(self, n_inner: int) -> None:
        super().__init__()
        self.branch1x1 = Convolution(768, 192, (1, 1))
        self.branch7x7_1 = Convolution(768, n_inner, (1, 1))
        self.branch7x7_2 = Convolution(n_inner, n_inner, (1, 7))
        self.branch7x7_3 = Convolution(n_inner, 192, (7, 1))
        self.branch7x7dbl_1 = Convolution(768, n_inner, (1, 1))
        self.branch7x7dbl_2 = Convolution(n_inner, n_inner, (7, 1))
        self.branch7x7dbl_3 = Convolution(n_inner, n_inner, (1, 7))
        self.branch7x7dbl_4 = Convolution(n_inner, n_inner, (7, 1))
        self.branch7x7dbl_5 = Convolution(n_inner, 192, (1, 7))
        self.branch_pool = Convolution(768, 192, (1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(_average(x))], dim=1)


class BlockD(nn.Module):
    """17 x 17 to 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1 = Convolution(768, 192, (1, 1))
        self.branch3x3_2 = Convolution(192, 320, (3, 3), stride=2, same=False)
        self.branch7x7x3_1 = Convolution(768, 192, (1, 1))
        self.branch7x7x3_2 = Convolution(192, 192, (1, 7))
        self.branch7x7x3_3 = Convolution(192, 192, (7, 1))
        self.branch7x7x3_4 = Convolution(192, 192, (3, 3), stride=2, same=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), self.branch7x7x3_4(seven), _halve(x)], dim=1)


class BlockE(nn.Module):
    """8 x 8: 3x3 convolutions as 1x3 beside 3x1; the graph's second such block pools by the maximum."""

    def __init__(self, n_in: int, pools_by_maximum: bool) -> None:
        super().__init__()
        self.pools_by_maximum = pools_by_maximum
        self.branch1x1 = Convolution(n_in, 320, (1, 1))
        self.branch3x3_1 = Convolution(n_in, 384, (1, 1))
        self.branch3x3_2a = Convolution(384, 384, (1, 3))
        self.branch3x3_2b = Convolution(384, 384, (3, 1))
        self.branch3x3dbl_1 = Convolution(n_in, 448, (1, 1))
        self.branch3x3dbl_2 = Convolution(448, 384, (3, 3))
        self.branch3x3dbl_3a = Convolution(384, 384, (1, 3))
        self.branch3x3dbl_3b = Convolution(384, 384, (3, 1))
        self.branch_pool = Convolution(n_in, 192, (1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.pools_by_maximum else _average(x)
        branches = [
            self.branch1x1(x), self.branch3x3_2a(three), self.branch3x3_2b(three), self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double), self.branch_pool(pooled),
        ]  # fmt: skip
        return torch.cat(branches, dim=1)


class Inception(nn.Module):
    """Images to features and classes. It is for evaluation mode only: see ``forward``."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, (3, 3), stride=2, same=False)
        self.Conv2d_2a_3x3 = Convolution(32, 32, (3, 3), same=False)
        self.Conv2d_2b_3x3 = Convolution(32, 64, (3, 3))
        self.Conv2d_3b_1x1 = Convolution(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = Convolution(80, 192, (3, 3), same=False)
        self.Mixed_5b = BlockA(192, 32)
        self.Mixed_5c = BlockA(256, 64)
        self.Mixed_5d = BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b = BlockC(128)
        self.Mixed_6c = BlockC(160)
        self.Mixed_6d = BlockC(160)
        self.Mixed_6e = BlockC(192)
        self.Mixed_7a = BlockD()
        self.Mixed_7b = BlockE(1280, pools_by_maximum=False)
        self.Mixed_7c = BlockE(2048, pools_by_maximum=True)
        self.fc = nn.Linear(N_FEATURES, N_CLASSES)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Features by name, in the dtype of the weights.

        Args:
            images: uint8 (B, 3, H, W), any size.

        Returns:
            "64", "192", "768" and "2048": means over space after the first two max pools, Mixed_6e and Mixed_7c, each
            (B, that many); "logits_unbiased" and "logits" (B, 1008), without and with the bias of the classifier.
        """
        x = resize(images.to(self.fc.weight.dtype))
        x = (x - 128.0) / 128.0
        found = {}
        x = _halve(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))))
        found["64"] = x.mean(dim=(2, 3))
        x = _halve(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
        found["192"] = x.mean(dim=(2, 3))
        x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x))))
        found["768"] = x.mean(dim=(2, 3))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        found["2048"] = x.mean(dim=(2, 3))
        found["logits_unbiased"] = F.linear(found["2048"], self.fc.weight)
        found["logits"] = found["logits_unbiased"] + self.fc.bias
        return found
