"""An exponential moving average (EMA) of a network's weights, kept by parameter name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from util.errors import UsageError
from util.named_shapes import describe_difference, shapes


class ExponentialMovingAverage:
    """The averaged copy ("shadow") of every trainable parameter.

    The n-th update (n = 1, 2, ...) is shadow <- shadow - (1 - d) (shadow - parameter) with the warm-up rule
    d = min(decay, (1 + n) / (10 + n)) of the score-based models of Song et al. (arXiv 2011.13456) and of CLD
    (Dockhorn et al., arXiv 2112.07068), so a decay of 0.9999 is reached after about 90,000 updates. Shadows
    begin as copies of the parameters and have their dtype, device and memory format. Without the warm-up rule d is
    ``decay`` from the first update on, as in ScoreFlow (arXiv 2101.09258) and VDM (arXiv 2107.00630).

    Args:
        named_parameters: e.g. ``network.named_parameters()`` of the network without a data-parallel wrapper,
            already on its device; parameters with ``requires_grad=False`` are left out.
        decay: the largest d, in [0, 1].
        warm_up: use the warm-up rule.

    Raises:
        UsageError: if the decay is out of range.
    """

    def __init__(
        self, named_parameters: Iterable[tuple[str, nn.Parameter]], decay: float, warm_up: bool = True
    ) -> None:
        if not 0.0 <= decay <= 1.0:
            raise UsageError(f"EMA decay is {decay}, which is outside [0, 1]; 0.9999 is usual")
        self.decay = decay
        self.warm_up = warm_up
        self.n_updates = 0
        self._parameters = {name: p for name, p in named_parameters if p.requires_grad}
        self.shadow = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._applied = False

    @torch.no_grad()
    def update(self) -> None:
        """Move the shadows towards the parameters; once after every training step, skipped steps included."""
        self._require_own_weights("update")
        self.n_updates += 1
        ramp = (1 + self.n_updates) / (10 + self.n_updates)
        decay = min(self.decay, ramp) if self.warm_up else self.decay
        torch._foreach_lerp_(list(self.shadow.values()), list(self._parameters.values()), 1.0 - decay)

    @torch.no_grad()
    def restart(self) -> None:
        """Begin again with copies of the parameters as they are now."""
        self._require_own_weights("restart")
        self.n_updates = 0
        for name, shadow in self.shadow.items():
            shadow.copy_(self._parameters[name])

    @contextmanager
    def average_weights(self) -> Iterator[None]:
        """Within the block the network computes with the averaged weights.

        Parameters and shadows exchange their storage, so nothing is copied and the weights come back bit for
        bit, also after an exception. The weights must not be trained inside the block.
        """
        self._require_own_weights("average_weights")
        self._exchange()
        self._applied = True
        try:
            yield
        finally:
            self._exchange()
            self._applied = False

    def state_dict(self) -> dict[str, Any]:
        """``{"decay": float, "n_updates": int, "shadow": {name: tensor}}``; the tensors are the live ones."""
        self._require_own_weights("state_dict")
        return {"decay": self.decay, "n_updates": self.n_updates, "shadow": dict(self.shadow)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over decay, number of updates and every shadow of ``state``.

        Raises:
            UsageError: if names or shapes differ from the network's trainable parameters; nothing is changed.
        """
        self._require_own_weights("load_state_dict")
        if set(state) != {"decay", "n_updates", "shadow"}:
            raise UsageError(f"EMA state holds {sorted(state)} instead of decay, n_updates and shadow")
        difference = describe_difference(shapes(self.shadow), shapes(state["shadow"]))
        if difference:
            raise UsageError(f"EMA state does not fit the network: {difference}; use its own settings")
        self.decay = float(state["decay"])
        self.n_updates = int(state["n_updates"])
        for name, shadow in self.shadow.items():
            shadow.copy_(state["shadow"][name])

    def _exchange(self) -> None:
        for name, parameter in self._parameters.items():
            parameter.data, self.shadow[name] = self.shadow[name], parameter.data

    def _require_own_weights(self, operation: str) -> None:
        if self._applied:
            raise RuntimeError(f"{operation}() while average_weights() holds the averages in the network")
