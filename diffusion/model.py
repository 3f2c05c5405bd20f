"""What a trained model can do, whatever it is inside: evaluators need this and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch

from util.noise import Noise


@dataclass(frozen=True)
class Samples:
    """Generated data.

    Attributes:
        data: float32 (B, C, H, W) in [0, 1] for images, (B, D) in data units for points.
        n_evaluations: network evaluations (NFE) spent on this batch.
    """

    data: torch.Tensor
    n_evaluations: int


@dataclass(frozen=True)
class LogLikelihood:
    """A likelihood, or a bound on one, for each sample.

    Attributes:
        value: float64 (B,), bits/dim for images, nats for points; lower is better.
        terms: every term of ``value`` by name, each float64 (B,), in the unit of ``value``; they add up to it.
        n_evaluations: right-hand sides of the probability-flow ODE (NFE), 0 where no ODE was solved.
        apart: what is worth reporting beside them, likewise, such as the likelihood of a latent.
    """

    value: torch.Tensor
    terms: dict[str, torch.Tensor]
    n_evaluations: int
    apart: dict[str, torch.Tensor] = field(default_factory=dict)


def total(terms: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The sum of named terms (B,) each."""
    return torch.stack(list(terms.values())).sum(0)


def go_on() -> None:
    """What a model that nobody wants to stop heeds."""


class GenerativeModel(Protocol):
    """A model, at its averaged (EMA) weights.

    Batches are what the data set holds: uint8 (B, C, H, W) images or float32 (B, D) points, on the model's device.
    ``noise`` is a stream with one entry for each sample of the batch.
    """

    unit: str
    """Unit of likelihoods: "bits/dim" or "nats"."""

    heed: Callable[[], None]
    """Called between the network evaluations of long work (an ODE, a bound over many times, a sampler's steps), by
    default ``go_on``; what it raises ends that work."""

    @property
    def likelihoods(self) -> Mapping[str, Callable[[torch.Tensor, Noise], LogLikelihood]]:
        """By the name in ``results.json``, from (batch, noise): "nelbo", an upper bound on the negative log-likelihood,
        "negative_log_likelihood", and whatever else the model has; the tightest last."""
        ...

    @property
    def trajectory(self) -> Callable[[Noise], dict[str, torch.Tensor]] | None:
        """How samples come about, where the model can show it: by name, images float (B, T, C, H, W) in [0, 1], the
        finished ones last."""
        ...

    def validation_loss(self, batch: torch.Tensor, noise: Noise) -> torch.Tensor:
        """The training objective for each sample, float64 (B,)."""
        ...

    def sample(self, noise: Noise) -> Samples:
        """One sample for each entry of ``noise``."""
        ...
