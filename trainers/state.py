"""Everything a snapshot holds of a run: networks, averages, optimisers, loss scale, step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trainers.update import Updater
from util.ema import ExponentialMovingAverage
from util.errors import UsageError
from util.named_shapes import describe_difference, shapes


@dataclass
class TrainingState:
    """The state that training changes. There is no random-generator state: noise is a function of the step."""

    networks: dict[str, nn.Module]
    emas: dict[str, ExponentialMovingAverage]
    optimizers: dict[str, torch.optim.Optimizer]
    scaler: torch.amp.GradScaler | None = None
    step: int = 0

    @staticmethod
    def of(
        updaters: Mapping[str, Updater],
        scaler: torch.amp.GradScaler | None,
        frozen: Mapping[str, nn.Module] | None = None,
    ) -> TrainingState:
        """The state at the beginning of a run.

        Args:
            updaters: of the networks that training changes.
            scaler: loss scale, where one is needed.
            frozen: networks that a snapshot holds although training does not change them; they come first.
        """
        return TrainingState(
            networks={**(frozen or {}), **{name: updater.network for name, updater in updaters.items()}},
            emas={name: updater.ema for name, updater in updaters.items()},
            optimizers={name: updater.optimizer for name, updater in updaters.items()},
            scaler=scaler,
        )

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain containers only; tensors are the live ones, not copies."""
        return {
            "step": self.step,
            "networks": {name: network.state_dict() for name, network in self.networks.items()},
            "emas": {name: ema.state_dict() for name, ema in self.emas.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "scaler": self.scaler.state_dict() if self.scaler is not None else {},
        }

    def load_state_dict(self, state: dict[str, Any], where: str) -> None:
        """Strict: names and shapes have to match exactly.

        Raises:
            UsageError: they do not; names ``where`` the state is from and the first differences.
        """
        self.load_networks(state, where)
        for name, optimizer in self.optimizers.items():
            try:
                optimizer.load_state_dict(state["optimizers"][name])
            except (KeyError, ValueError) as error:
                raise UsageError(
                    f"{where}: no state for the optimiser of '{name}' ({error}); an imported checkpoint can be "
                    "evaluated but not continued"
                ) from None
        if self.scaler is not None and state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        self.step = int(state["step"])

    def load_networks(self, state: dict[str, Any], where: str) -> None:
        """Networks, averages and step only: what an evaluation needs. Raises as ``load_state_dict``."""
        for name, network in self.networks.items():
            given = state["networks"].get(name)
            if given is None:
                raise UsageError(f"{where}: it has no network '{name}'; is it a snapshot of another --system?")
            difference = describe_difference(shapes(network.state_dict()), shapes(given))
            if difference:
                raise UsageError(f"{where}: it does not fit the network '{name}': {difference}; use its own settings")
            network.load_state_dict(given)
        for name, ema in self.emas.items():
            if name not in state["emas"]:
                raise UsageError(f"{where}: it has no averaged weights for '{name}'; is it of another --system?")
            ema.load_state_dict(state["emas"][name])
        self.step = int(state["step"])
