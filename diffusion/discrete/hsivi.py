"""Hierarchical semi-implicit variational inference for few-step diffusion sampling (HSIVI-SM, arXiv 2310.17153).

N time points, from index 0 (clean) to index N - 1 (noise), are joined by N - 1 conditional layers. The layer with
output index i maps x_{i+1} to x_i; N(0, I) at index N - 1 and all layers in turn are the sampler. Three networks of one
architecture take (image, time label) to an image: the frozen teacher, phi, which the layers share, and f, which learns
the score of what the layers produce. All three estimate -sigma_i grad log p(x_i).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from util.errors import UsageError

Network = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(images (B, C, H, W), time labels (B,)) to noise predictions (B, C, H, W)."""

Normal = Callable[[], torch.Tensor]
"""The next standard normal tensor for the whole batch."""


@dataclass(frozen=True)
class Hierarchy:
    """The time points and what the layers between them need to know of the forward process.

    Attributes:
        labels: float32 (N,), the time labels that the networks are given, increasing.
        signal: (N,), sqrt(abar_i), where x_i = signal_i x + sigma_i noise in the forward process.
        sigma: (N,), sqrt(1 - abar_i).
        spread: (N - 1,), standard deviation of the layer with output index i before its learned factor: DDIM's for eta
            (Song et al., arXiv 2010.02502, Eq. 16).
        direction: (N - 1,), sqrt(sigma_i^2 - spread_i^2).
    """

    labels: torch.Tensor
    signal: torch.Tensor
    sigma: torch.Tensor
    spread: torch.Tensor
    direction: torch.Tensor

    @property
    def n_layers(self) -> int:
        return len(self.spread)


def make_hierarchy(labels: torch.Tensor, one_minus_alphas_bar: torch.Tensor, eta: float) -> Hierarchy:
    """The hierarchy on given time points.

    Args:
        labels: (N,), increasing.
        one_minus_alphas_bar: (N,), 1 - abar at the time points. Its dtype is that of the arithmetic: float64, or
            float32 for the rounding of the public code, which forms abar from the rounded sigma.
        eta: in (0, 1]; with 0 the layers would have no spread and no score.

    Raises:
        UsageError: for eta out of range.
    """
    if not 0.0 < eta <= 1.0:
        raise UsageError(f"eta {eta}: a layer's spread has to be above 0 and at most 1 (DDPM's); 0.2 is usual")
    sigma = one_minus_alphas_bar.sqrt()
    alphas_bar = 1 - sigma**2
    share = 1 - alphas_bar[1:] / alphas_bar[:-1]
    spread = eta * (share * sigma[:-1] ** 2 / sigma[1:] ** 2).sqrt()
    direction = (sigma[:-1] ** 2 - spread**2).sqrt()
    return Hierarchy(labels.float(), alphas_bar.sqrt(), sigma, spread, direction)


def log_gamma_shape(n_layers: int, image_shape: tuple[int, ...], per_pixel: bool, per_layer: bool) -> tuple[int, ...]:
    """Shape of the learned logarithm of the factor on the layers' spread.

    (C, H, W) or (1,) where all layers share it, (N - 1, C, H, W) or (N - 1,) where each has its own.
    """
    if per_pixel:
        return (n_layers, *image_shape) if per_layer else image_shape
    return (n_layers,) if per_layer else (1,)


def _log_gamma_at(log_gamma: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Of each sample's layer: (B, C, H, W) or (B, 1, 1, 1)."""
    if log_gamma.ndim == 1:
        values = log_gamma[index] if len(log_gamma) > 1 else log_gamma.expand(len(index))
        return values[:, None, None, None]
    return log_gamma[index] if log_gamma.ndim == 4 else log_gamma.expand(len(index), *log_gamma.shape)


def _at(table: torch.Tensor, index: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return table[index].to(like.dtype)[:, None, None, None]


@dataclass(frozen=True)
class Transition:
    """What a layer made of x_{i+1}.

    Attributes:
        prediction: (B, C, H, W), what the network took for the noise in x_{i+1}.
        clean: (B, C, H, W), the clean image that follows from it.
        mean: (B, C, H, W), of x_i given x_{i+1}; the learned factor has no part in it.
        gamma: (B, C, H, W) or (B, 1, 1, 1), standard deviation in units of sigma_i.
        noise: (B, C, H, W), standard normal.
        state: (B, C, H, W), x_i = mean + gamma sigma_i noise.
    """

    prediction: torch.Tensor
    clean: torch.Tensor
    mean: torch.Tensor
    gamma: torch.Tensor
    noise: torch.Tensor
    state: torch.Tensor

    @property
    def target(self) -> torch.Tensor:
        """-sigma_i grad log q(x_i | x_{i+1}), (B, C, H, W): what f regresses on."""
        return self.noise / self.gamma


def apply_layer(
    hierarchy: Hierarchy,
    phi: Network,
    log_gamma: torch.Tensor,
    state: torch.Tensor,
    index: torch.Tensor,
    noise: torch.Tensor,
) -> Transition:
    """One conditional layer for each sample (arXiv 2310.17153): a DDIM step with a learned spread.

    Args:
        state: x_{i+1}, (B, C, H, W).
        index: int64 (B,) on the device, output index i of each sample's layer, 0 to N - 2.
        noise: standard normal, shape of the state; zeros give the mean.
    """
    prediction = phi(state, hierarchy.labels[index + 1]).to(state.dtype)
    clean = (state - _at(hierarchy.sigma, index + 1, state) * prediction) / _at(hierarchy.signal, index + 1, state)
    mean = _at(hierarchy.signal, index, state) * clean + _at(hierarchy.direction, index, state) * prediction
    deviation = _log_gamma_at(log_gamma, index).exp() * _at(hierarchy.spread, index, state)
    gamma = deviation / _at(hierarchy.sigma, index, state)
    return Transition(prediction, clean, mean, gamma, noise, mean + deviation * noise)


@dataclass(frozen=True)
class Depths:
    """How many layers samples pass, known on both sides: the host plans the batches of the layers by it while the
    device picks their samples, and neither waits for the other.

    Attributes:
        on_device: int64 (B,), or (B, K) for K states of each sample's chain, 0 to N - 1.
        on_host: the same on the CPU.
    """

    on_device: torch.Tensor
    on_host: torch.Tensor

    @property
    def shape(self) -> torch.Size:
        return self.on_host.shape

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Depths:
        """A function of them on both sides."""
        return Depths(function(self.on_device), function(self.on_host))

    def of_pair(self, index: int) -> Depths:
        """(B,) of (B, K)."""
        return self.map(lambda depths: depths[:, index])


def roll_out(
    hierarchy: Hierarchy, phi: Network, log_gamma: Tensor, start: Tensor, depths: Depths, normal: Normal
) -> Iterator[tuple[int, torch.Tensor, Transition]]:
    """Carry each sample from noise through as many layers as it needs, without gradients.

    A layer sees only samples that have to pass it, so phi is evaluated sum(depths) times, not B max(depths) times. A
    sample's result does not depend on the others of its batch.

    Args:
        start: x_{N-1}, (B, C, H, W).
        depths: (B,), layers that each sample passes, 0 to N - 1.
        normal: called once for each layer, for the whole batch.

    Yields:
        Number of layers passed, 1, 2, ...; rows int64 (A,) of ``start`` that passed this one; and what came of them,
        in the order of the rows.
    """
    planned = depths.on_host
    counts = [int((planned > passed).sum()) for passed in range(int(planned.max()))]
    order = depths.on_device.argsort(descending=True, stable=True)
    state = start[order]
    for passed, n_active in enumerate(counts, start=1):
        index = torch.full((n_active,), hierarchy.n_layers - passed, device=start.device)
        with torch.no_grad():
            noise = normal()[order[:n_active]]
            transition = apply_layer(hierarchy, phi, log_gamma, state[:n_active], index, noise)
        state = transition.state
        yield passed, order[:n_active], transition


def states_at(
    hierarchy: Hierarchy, phi: Network, log_gamma: Tensor, start: Tensor, depths: Depths, normal: Normal
) -> torch.Tensor:
    """The states (B, C, H, W) of samples that passed ``depths`` layers; arguments as ``roll_out``."""
    states = start.clone()
    for _, rows, transition in roll_out(hierarchy, phi, log_gamma, start, depths, normal):
        states[rows] = transition.state
    return states


def _weighted_sum(values: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    return sigma.double() ** 2 * values.flatten(1).sum(1, dtype=torch.float64)


class Networks(NamedTuple):
    """The three networks as they are called."""

    phi: Network
    f: Network
    teacher: Network


def phi_loss(
    hierarchy: Hierarchy,
    networks: Networks,
    log_gamma: torch.Tensor,
    start: torch.Tensor,
    depths: Depths,
    layer_noise: torch.Tensor,
    normal: Normal,
) -> torch.Tensor:
    """What phi and log_gamma minimise (HSIVI-SM, arXiv 2310.17153), float64 (B,).

    sigma_i^2 (2 g (target - u) - g^2) with u = teacher(x_i) and g = f(x_i) - u, summed over pixels. At the best f its
    mean is sigma_i^2 E |f - u|^2, the distance between the scores of x_i and the teacher's; before, it can be negative.
    Gradients flow through x_i into f and the teacher, so their parameters should be frozen.

    Args:
        start: x_{N-1}, standard normal (B, C, H, W).
        depths: (B,): the last of so many layers, 1 to N - 1, is the one that is trained. Only it is evaluated with
            gradients, and only once.
        layer_noise: of the trained layer, shape of ``start``.
        normal: of the layers before, as ``roll_out``.
    """
    phi, f, teacher = networks
    state = states_at(hierarchy, phi, log_gamma, start, depths.map(lambda n: n - 1), normal)
    index = hierarchy.n_layers - depths.on_device
    transition = apply_layer(hierarchy, phi, log_gamma, state, index, layer_noise)
    labels = hierarchy.labels[index]
    wanted = teacher(transition.state, labels).to(state.dtype)
    difference = f(transition.state, labels).to(state.dtype) - wanted
    values = 2 * difference * (transition.target - wanted) - difference**2
    return _weighted_sum(values, hierarchy.sigma[index])


def f_loss(
    hierarchy: Hierarchy,
    phi: Network,
    log_gamma: torch.Tensor,
    f: Network,
    start: torch.Tensor,
    depths: Depths,
    normal: Normal,
) -> torch.Tensor:
    """What f minimises: sigma_i^2 |f(x_i) - target|^2, float64 (B,), whose minimiser is the score of the layers' x_i.

    Every transition of a chain is a pair (x_i, target); those after ``depths`` layers are used.

    Args:
        start: x_{N-1}, standard normal (B, C, H, W).
        depths: (B, K), the K different transitions of each sample's chain, 1 to N - 1. The loss is their mean.
        normal: as ``roll_out``.
    """
    n_samples, n_pairs = depths.shape
    states = start.new_empty(n_samples * n_pairs, *start.shape[1:])
    targets = torch.empty_like(states)
    # Pairs by their depth: the host knows how many have each, the device which.
    n_of_depth = depths.on_host.flatten().bincount(minlength=hierarchy.n_layers + 1).tolist()
    pairs_of_depth = depths.on_device.flatten().argsort(stable=True).split(n_of_depth)
    place = torch.empty(0)
    for passed, rows, transition in roll_out(
        hierarchy, phi, log_gamma, start, depths.map(lambda n: n.amax(1)), normal
    ):
        if passed == 1:
            place = rows.argsort()  # of each sample among the rows, of which later ones are the first
        pairs = pairs_of_depth[passed]
        among_rows = place[pairs // n_pairs]
        states[pairs] = transition.state[among_rows]
        targets[pairs] = transition.target[among_rows]
    index = (hierarchy.n_layers - depths.on_device).flatten()
    estimates = f(states, hierarchy.labels[index]).to(start.dtype)
    losses = _weighted_sum((estimates - targets) ** 2, hierarchy.sigma[index])
    return losses.reshape(n_samples, n_pairs).mean(1)


def mirror(
    places: torch.Tensor, batch_size: int, by_halves: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which sample's draw r gives the depth of each sample of a batch: r itself, or its mirror image N - r.

    Neighbours share a draw, so each pair passes exactly N layers, and ranks with an even share of the batch have equal
    work.

    Args:
        places: int64 (B,), of the samples in the batch.
        batch_size: of the whole batch over all ranks.
        by_halves: let the second half of a batch mirror the first, which leaves two samples of an even batch unpaired.

    Returns:
        The place whose draw counts, int64 (B,), and whether it is mirrored, bool (B,).
    """
    if by_halves:
        n_drawn = batch_size // 2 + 1
        mirrored = places >= n_drawn
        return torch.where(mirrored, places - n_drawn, places), mirrored
    mirrored = places % 2 == 1
    return places - places % 2, mirrored


def sampling_layers(
    hierarchy: Hierarchy, phi: Network, log_gamma: torch.Tensor, start: torch.Tensor, normal: Normal
) -> Iterator[Transition]:
    """The sampler: all N - 1 layers in turn, the last one without noise, so that the last state is a mean.

    Args:
        start: x_{N-1}, standard normal (B, C, H, W).
        normal: called for every layer but the last.
    """
    state = start
    for index in reversed(range(hierarchy.n_layers)):
        noise = normal() if index > 0 else torch.zeros_like(state)
        indices = torch.full((len(start),), index, device=start.device)
        with torch.no_grad():
            transition = apply_layer(hierarchy, phi, log_gamma, state, indices, noise)
        state = transition.state
        yield transition
