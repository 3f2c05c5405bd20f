"""What the loop needs from a system beside a model: its losses, what they train, and what a snapshot holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from diffusion.model import GenerativeModel
from trainers.state import TrainingState
from trainers.update import Updater
from util.data.loader import MicroBatch
from util.noise import Noise


def always(_step: int) -> bool:
    """Due at every step."""
    return True


@dataclass(frozen=True)
class Update:
    """One update of one network within a step of training.

    Attributes:
        network: its name in ``Method.updaters``.
        losses: the objective for each sample of a micro-batch, (B,), from a stream of noise with an entry for each. The
            same parameters have gradients every time. On several ranks it is called twice more before its first step,
            so it changes nothing but buffers of the method's networks.
        purpose: of that noise.
        prefix: of the metrics.
        due: whether it is part of the step, from the number of completed steps.
    """

    network: str
    losses: Callable[[MicroBatch, Noise], torch.Tensor]
    purpose: str = "train"
    prefix: str = ""
    due: Callable[[int], bool] = always


class Method(GenerativeModel, Protocol):
    """One published system: a model, and how it is trained.

    A method that cannot do one of these raises UsageError when it is built, before any work.
    """

    state: TrainingState

    @property
    def updaters(self) -> Mapping[str, Updater]:
        """Of each network that training changes."""
        ...

    @property
    def updates(self) -> Sequence[Update]:
        """The updates of a step, in their order. Empty for a method that takes its own steps."""
        ...


@runtime_checkable
class TakesOwnSteps(Protocol):
    """A method whose step is more than updates of one network each."""

    def take_step(self, batches: list[tuple[MicroBatch, Noise]]) -> dict[str, torch.Tensor]:
        """Update the networks once, on this rank's micro-batches; ``trainers.step`` counts the step.

        Returns:
            Scalars to log; ``loss``, ``gradient_norm`` and ``learning_rate`` among them.
        """
        ...


@runtime_checkable
class InitialisesFromData(Protocol):
    """A method whose initial weights depend on the first batch."""

    def initialise(self, micro_batches: list[MicroBatch]) -> None:
        """Called once, before the first step of a new run, with that step's micro-batches."""
        ...


@runtime_checkable
class ReportsMore(Protocol):
    """A method that has something to add to what a step reports."""

    def report(self, metrics: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Further scalars, from those of a step."""
        ...


@runtime_checkable
class StartsFromWeights(Protocol):
    """A method whose training starts from given weights."""

    def load_pretrained(self) -> None:
        """Load them. Called once for a new run, not when one goes on from a snapshot.

        Raises:
            UsageError: there are none, or they do not fit the options.
        """
        ...
