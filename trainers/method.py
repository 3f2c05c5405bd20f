"""What the loop and the evaluators need from a system, and nothing else about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch

from trainers.state import TrainingState
from util.data.loader import MicroBatch
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


@runtime_checkable
class StartsFromWeights(Protocol):
    """A method whose training starts from given weights."""

    def load_pretrained(self) -> None:
        """Load them. Called once for a new run, not when one goes on from a snapshot.

        Raises:
            UsageError: there are none, or they do not fit the options.
        """
        ...


class Method(Protocol):
    """One published system.

    Evaluation batches are what the data set holds: uint8 (B, C, H, W) images or float32 (B, D) points, on the rank's
    device. ``noise`` is a stream with one entry for each sample of the batch. Evaluations use the averaged (EMA)
    weights.
    A method that cannot do one of these raises UsageError when it is built, before any work.
    """

    state: TrainingState
    unit: str
    """Unit of likelihoods: "bits/dim" or "nats"."""

    @property
    def likelihoods(self) -> Mapping[str, Callable[[torch.Tensor, Noise], LogLikelihood]]:
        """By the name in ``results.json``, from (batch, noise): "nelbo", an upper bound on the negative log-likelihood,
        "negative_log_likelihood", and whatever else the method has; the tightest last."""
        ...

    @property
    def trajectory(self) -> Callable[[Noise], dict[str, torch.Tensor]] | None:
        """How samples come about, where the method can show it: by name, images float (B, T, C, H, W) in [0, 1], the
        finished ones last."""
        ...

    def train_step(self, micro_batches: list[MicroBatch]) -> dict[str, torch.Tensor]:
        """One or several optimiser updates, after which ``state.step`` is one more.

        Returns:
            Scalars to log; ``loss``, ``gradient_norm`` and ``learning_rate`` among them.
        """
        ...

    def validation_loss(self, batch: torch.Tensor, noise: Noise) -> torch.Tensor:
        """The training objective for each sample, float64 (B,)."""
        ...

    def sample(self, noise: Noise) -> Samples:
        """One sample for each entry of ``noise``."""
        ...

