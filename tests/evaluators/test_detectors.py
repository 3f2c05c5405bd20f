"""Feature detectors: pixels, TorchScript files with and without return_features, and files that are neither."""

from pathlib import Path

import pytest
import torch

from evaluators.detectors import load_detector
from util.errors import UsageError

CPU = torch.device("cpu")


class MeanColor(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.dtype == torch.uint8
        assert images.shape[1] == 3
        return images.float().mean(dim=[2, 3])


class WithReturnFeatures(torch.nn.Module):
    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        if return_features:
            return images.float().flatten(1)[:, :5]
        return torch.zeros(len(images), 2)


class ThreeDimensional(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean(dim=3)


class NotFinite(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().flatten(1)[:, :2] / 0.0


class OneChannelOnly(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().flatten(1) @ torch.zeros(16, 2)


def _save(module: torch.nn.Module, path: Path) -> str:
    torch.jit.save(torch.jit.script(module), str(path))
    return str(path)


def test_pixels() -> None:
    detector = load_detector("pixels", (3, 4, 4), CPU)
    images = torch.arange(96, dtype=torch.uint8).reshape(2, 3, 4, 4)
    features = detector.features(images)
    assert features.dtype == torch.float32
    assert detector.n_features == 48
    torch.testing.assert_close(features, torch.arange(96).reshape(2, 48) / 255.0)
    assert detector.quantity == "frechet_distance of pixels"


@pytest.mark.parametrize("channels", [1, 3])
def test_torchscript_file(tmp_path: Path, channels: int) -> None:
    detector = load_detector(_save(MeanColor(), tmp_path / "mean.pt"), (channels, 4, 4), CPU)
    images = torch.randint(256, (5, channels, 4, 4), dtype=torch.uint8)
    expected = images.float().mean(dim=(2, 3)).expand(5, 3)
    torch.testing.assert_close(detector.features(images), expected)
    assert (detector.name, detector.n_features, len(detector.digest)) == ("mean.pt", 3, 64)


def test_return_features_is_passed_where_it_is_known(tmp_path: Path) -> None:
    detector = load_detector(_save(WithReturnFeatures(), tmp_path / "detector.pt"), (3, 4, 4), CPU)
    assert detector.n_features == 5


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (ThreeDimensional(), r"2 images gave \(2, 3, 4\)"),
        (OneChannelOnly(), r"fails on uint8 images of shape 2x3x4x4"),
        (NotFinite(), "not finite"),
    ],
)
def test_detectors_that_do_not_fit(tmp_path: Path, module: torch.nn.Module, message: str) -> None:
    path = _save(module, tmp_path / "detector.pt")
    with pytest.raises(UsageError, match=message) as error:
        load_detector(path, (3, 4, 4), CPU)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_not_torchscript(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        load_detector(str(tmp_path / "absent.pt"), (3, 4, 4), CPU)
    garbage = tmp_path / "garbage.pt"
    garbage.write_bytes(b"\x00" * 100)
    plain = tmp_path / "plain.pt"
    torch.save({"weights": torch.zeros(3)}, plain)
    whole = _save(MeanColor(), tmp_path / "whole.pt")
    truncated = tmp_path / "truncated.pt"
    truncated.write_bytes(Path(whole).read_bytes()[:200])
    for path in (garbage, plain, truncated):
        with pytest.raises(UsageError, match="not a TorchScript file") as error:
            load_detector(str(path), (3, 4, 4), CPU)
        assert "\n" not in str(error.value)


def test_points_and_huge_pixels_are_refused() -> None:
    with pytest.raises(UsageError, match="needs images"):
        load_detector("pixels", (2,), CPU)
    with pytest.raises(UsageError, match="196608 features"):
        load_detector("pixels", (3, 256, 256), CPU)
