"""Feature detectors: the pixels themselves, the Inception network of the FID, or a network in a TorchScript file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from evaluators.inception_weights import cache_folder, find_weights, load_inception
from models.inception import N_FEATURES, Inception
from util.distributed import Distributed
from util.errors import UsageError

LARGEST_N_FEATURES = 12_288
"""Above this the covariance takes gigabytes and its eigenvalues hours; 64x64 colour pixels have as many."""


FEATURES, LOGITS = "features", "logits"
PIXELS, INCEPTION = "pixels", "inception"


@dataclass(frozen=True)
class Detector:
    """Features of images.

    Attributes:
        name: "pixels", "inception", or the file's name.
        digest: what tells detectors of the same name apart: SHA-256 of the file with the weights.
        n_features: F.
        features: uint8 (B, C, H, W) images on the detector's device -> float32 (B, F), finite.
        logits: those features -> logits of classes (B, classes), where it has some.
    """

    name: str
    digest: str
    n_features: int
    features: Callable[[torch.Tensor], torch.Tensor]
    logits: Callable[[torch.Tensor], torch.Tensor] | None = None

    @property
    def gives(self) -> tuple[str, ...]:
        """Names of what ``outputs`` gives."""
        return (FEATURES, LOGITS) if self.logits is not None else (FEATURES,)

    def outputs(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """All it has to say of images, as ``features`` takes them: "features", and "logits" where there are classes."""
        features = self.features(images)
        return {FEATURES: features, **({LOGITS: self.logits(features)} if self.logits is not None else {})}

    @property
    def quantity(self) -> str:
        """What a distance between such features is called."""
        return f"frechet_distance of {self.name}"


@dataclass(frozen=True)
class DetectorSettings:
    """Which detector.

    Attributes:
        name: "pixels", "inception", or the path of a TorchScript file.
        weights: file of Inception's weights; None looks in the cache, and downloads them.
        batch_size: images that go through Inception at once.
    """

    name: str = PIXELS
    weights: Path | None = None
    batch_size: int = 64


def open_detector(settings: DetectorSettings, image_shape: tuple[int, ...], distributed: Distributed) -> Detector:
    """The detector on each rank; one of them looks for weights, and downloads them where need be.

    Raises:
        UsageError: as ``load_detector`` and ``find_weights``, on every rank.
    """
    if settings.name != INCEPTION or len(image_shape) != 3:
        return load_detector(settings.name, image_shape, distributed.device)
    path = distributed.from_main(lambda: find_weights(settings.weights, cache_folder()))
    if not path.is_file():
        raise UsageError(f"--fid_weights {path}: not seen from all nodes; name a file in a folder that they share")
    network = load_inception(path).to(distributed.device)
    features = partial(_inception_features, network, settings.batch_size)
    return Detector(INCEPTION, _digest(path), N_FEATURES, features, partial(_inception_logits, network))


def _inception_features(network: Inception, batch_size: int, images: torch.Tensor) -> torch.Tensor:
    if images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    # In float32, whatever the model is evaluated in: the features are those that published distances are made of.
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        return torch.cat([network(part)["2048"] for part in images.split(batch_size)])


def _inception_logits(network: Inception, features: torch.Tensor) -> torch.Tensor:
    """Without the classifier's bias, as the Inception Score has them."""
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        return torch.nn.functional.linear(features, network.fc.weight)


def load_detector(detector: str, image_shape: tuple[int, ...], device: torch.device) -> Detector:
    """The detector called "pixels", or the one in a TorchScript file.

    ``pixels`` are the flattened images in [0, 1]. A TorchScript detector gets uint8 (B, 3, H, W) images,
    single channels repeated, with ``return_features=True`` where its forward knows that argument, and returns
    (B, F). It is tried on two images at once: one that does not fit is refused before any image is sampled.

    Args:
        detector: "pixels" or a path.
        image_shape: (C, H, W) of the images to come.
        device: where it runs.

    Raises:
        UsageError: the data are not images, the file is not TorchScript, or its output is not finite (B, F).
    """
    if len(image_shape) != 3:
        raise UsageError(f"a feature detector needs images, but the data have shape {tuple(image_shape)}")
    if detector == PIXELS:
        n_features = image_shape[0] * image_shape[1] * image_shape[2]
        _check_size(detector, n_features)
        return Detector(PIXELS, "", n_features, lambda images: images.flatten(1).float() / 255.0)
    path = Path(detector)
    features = _torchscript_features(path, device)
    probe = torch.zeros((2, *image_shape), dtype=torch.uint8, device=device)
    try:
        n_features = features(probe).shape[1]
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        shape = "x".join(str(size) for size in (2, 3, *image_shape[1:]))
        raise UsageError(
            f"fid_detector {path}: fails on uint8 images of shape {shape} ({_last_line(error)}); "
            "it has to take uint8 (B, 3, H, W)"
        ) from None
    _check_size(path.name, n_features)
    return Detector(path.name, _digest(path), n_features, features)


def _torchscript_features(path: Path, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    if not path.is_file():
        raise UsageError(f"fid_detector {path}: no such file; give pixels, inception or the path of a TorchScript file")
    try:
        module = torch.jit.load(str(path), map_location=device).eval()
        argument_names = {argument.name for argument in module.forward.schema.arguments}
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, AttributeError):
        raise UsageError(
            f"fid_detector {path}: not a TorchScript file; save the detector with torch.jit.save"
        ) from None
    arguments = {"return_features": True} if "return_features" in argument_names else {}

    def features(images: torch.Tensor) -> torch.Tensor:
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        # The optimising executor fuses once it is warm, so low bits would depend on what ran before.
        with torch.no_grad(), torch.jit.optimized_execution(False):
            output = module(images, **arguments)
        if not isinstance(output, torch.Tensor) or output.ndim != 2 or len(output) != len(images):
            found = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
            raise UsageError(f"fid_detector {path}: {len(images)} images gave {found} instead of (B, F)")
        if not output.isfinite().all():
            raise UsageError(f"fid_detector {path}: features are not finite")
        return output.float()

    return features


def _check_size(name: str, n_features: int) -> None:
    if n_features > LARGEST_N_FEATURES:
        raise UsageError(
            f"fid_detector {name}: {n_features} features for each image, more than {LARGEST_N_FEATURES}; "
            "use a detector with fewer, in a TorchScript file"
        )


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:160] if lines else type(error).__name__
