"""Small data sets and methods with known answers."""
# ruff: noqa: ARG002 (the protocol fixes the arguments)

import math

import numpy as np
import torch

from diffusion.model import LogLikelihood, Samples, go_on
from trainers.state import TrainingState
from util.noise import Noise


class Images:
    """Random grey levels, a function of the index."""

    def __init__(self, length: int = 23, shape: tuple[int, int, int] = (3, 4, 4), seed: int = 0) -> None:
        self.name, self.shape, self.is_image, self.length, self.seed = "images", shape, True, length, seed

    def read(self, indices: np.ndarray) -> torch.Tensor:
        assert indices.min() >= 0
        assert indices.max() < self.length
        noise = Noise(self.seed, "test images", torch.from_numpy(np.asarray(indices)))
        return noise.integers(256, *self.shape).to(torch.uint8)


class Points:
    """Endless standard normal points."""

    def __init__(self, dimension: int = 2) -> None:
        self.name, self.shape, self.is_image, self.length = "points", (dimension,), False, None

    def read(self, indices: np.ndarray) -> torch.Tensor:
        return Noise(0, "test points", torch.from_numpy(np.asarray(indices))).normal(*self.shape)


class ImageMethod:
    """Values that depend on the whole batch they are computed in, as those of an adaptive solver do."""

    unit = "bits/dim"
    heed = staticmethod(go_on)

    def __init__(self, shape: tuple[int, int, int] = (3, 4, 4), shift: float = 0.0) -> None:
        self.state = TrainingState({}, {}, {})
        self.shape, self.shift = shape, shift
        generator = torch.Generator().manual_seed(5)
        self.kernel = torch.randn(shape[0], shape[0], 3, 3, generator=generator)
        self.indices: list[int] = []
        self.likelihoods = {"nelbo": self.nelbo, "negative_log_likelihood": self.log_likelihood}

    def _features(self, batch: torch.Tensor, noise: Noise) -> torch.Tensor:
        self.indices += noise.indices.tolist()
        x = batch.float() / 255.0 + 0.1 * noise.normal(*self.shape)
        y = torch.nn.functional.conv2d(x, self.kernel, padding=1).tanh()
        return y.double().flatten(1).mean(1) + self.shift + 1e-3 * y.mean().double()

    def validation_loss(self, batch: torch.Tensor, noise: Noise) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        return self._features(batch, noise)

    def sample(self, noise: Noise) -> Samples:
        self.indices += noise.indices.tolist()
        x = torch.nn.functional.conv2d(noise.normal(*self.shape), self.kernel, padding=1)
        return Samples((x + self.shift).sigmoid(), n_evaluations=10 + int(noise.indices[0]))

    def trajectory(self, noise: Noise) -> dict[str, torch.Tensor]:
        images = self.sample(noise).data
        return {"states": torch.stack([torch.zeros_like(images), images], dim=1)}

    def nelbo(self, batch: torch.Tensor, noise: Noise) -> LogLikelihood:
        value = self._features(batch, noise)
        terms = {"prior": 0.25 * value, "divergence": 0.75 * value}
        return LogLikelihood(value, terms, n_evaluations=100 + len(batch))

    def log_likelihood(self, batch: torch.Tensor, noise: Noise) -> LogLikelihood:
        value = 2.0 * self._features(batch, noise)
        return LogLikelihood(value, {"everything": value}, n_evaluations=7)


class GaussianMethod:
    """The exact model of ``Points``: standard normal samples and likelihood in nats."""

    unit = "nats"
    heed = staticmethod(go_on)
    trajectory = None

    def __init__(self, dimension: int = 2) -> None:
        self.state = TrainingState({}, {}, {})
        self.dimension = dimension
        self.likelihoods = {"negative_log_likelihood": self.log_likelihood}

    def validation_loss(self, batch: torch.Tensor, noise: Noise) -> torch.Tensor:
        return batch.double().square().sum(1)

    def sample(self, noise: Noise) -> Samples:
        return Samples(noise.normal(self.dimension), n_evaluations=1)

    def log_likelihood(self, batch: torch.Tensor, noise: Noise) -> LogLikelihood:
        value = 0.5 * batch.double().square().sum(1) + 0.5 * self.dimension * math.log(2.0 * math.pi)
        return LogLikelihood(value, {"prior_x": value}, n_evaluations=3)
