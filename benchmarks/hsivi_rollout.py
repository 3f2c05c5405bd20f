"""``python -m benchmarks.hsivi_rollout``: what HSIVI's roll-out costs.

Against the plain roll-out, which carries the whole batch to its deepest sample and then evaluates the trained layer for
everybody: evaluations of phi for each sample of a loss, and the time of whole updates. And the same for f trained on
several pairs of a chain (``--f_pairs_per_chain``), in time for each pair.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import nn

from diffusion.discrete.hsivi import (
    Depths,
    Hierarchy,
    Networks,
    apply_layer,
    f_loss,
    make_hierarchy,
    mirror,
    phi_loss,
)
from diffusion.discrete.schedule import choose_labels, make_schedule
from models.ddpm_unet import DDPMUNet, DDPMUNetSettings
from models.log_gamma import add_log_gamma
from util.noise import Noise

N_POINTS = (6, 11, 16)


def hierarchy_of(n_points: int, device: torch.device) -> Hierarchy:
    schedule = make_schedule("linear", 1000).subset(choose_labels("quad", n_points)).to(device)
    return make_hierarchy(schedule.labels, schedule.one_minus_alphas_bar, 0.2)


def depths_of(n_points: int, batch_size: int, seed: int) -> torch.Tensor:
    """int64 (B,), mirrored in pairs of neighbours."""
    source, mirrored = mirror(torch.arange(batch_size), batch_size)
    drawn = Noise(seed, "depth", source).integers(n_points - 1) + 1
    return torch.where(mirrored, n_points - drawn, drawn)


def plain_states(
    hierarchy: Hierarchy, phi: nn.Module, log_gamma: torch.Tensor, start: torch.Tensor, depths: torch.Tensor,
    normal: Callable[[], torch.Tensor],
) -> torch.Tensor:  # fmt: skip
    """Everybody passes the layers of the deepest sample; each keeps the state that it wants."""
    states = [start]
    with torch.no_grad():
        for passed in range(1, int(depths.max()) + 1):
            index = torch.full((len(start),), hierarchy.n_layers - passed, device=start.device)
            states.append(apply_layer(hierarchy, phi, log_gamma, states[-1], index, normal()).state)
    return torch.stack(states)[depths.to(start.device), torch.arange(len(start), device=start.device)]


class Updates:
    """Losses of both networks with both roll-outs, from the same noise."""

    def __init__(self, n_points: int, batch_size: int, n_channels: int, device: torch.device) -> None:
        self.hierarchy, self.batch_size, self.device = hierarchy_of(n_points, device), batch_size, device
        self.n_points, self.shape = n_points, (3, 16, 16)
        torch.manual_seed(0)
        settings = DDPMUNetSettings(3, 16, n_channels, ch_mult=(1, 2), n_resblocks=1, attn_resolutions=(8,), n_groups=8)
        self.phi, self.f, self.teacher = (DDPMUNet(settings).to(device) for _ in range(3))
        self.teacher.requires_grad_(False)
        self.log_gamma = add_log_gamma(self.phi, self.shape)
        self.n_evaluated = 0
        self.phi.register_forward_hook(self._count)

    def _count(self, _module: nn.Module, inputs: tuple[torch.Tensor, ...], _output: torch.Tensor) -> None:
        self.n_evaluated += len(inputs[0])

    def _noise(self, seed: int) -> Callable[[], torch.Tensor]:
        noise = Noise(seed, "chains", torch.arange(self.batch_size), device=self.device)
        return lambda: noise.normal(*self.shape)

    def _on_both_sides(self, depths: torch.Tensor) -> Depths:
        return Depths(depths.to(self.device), depths)

    def update_phi(self, seed: int, plain: bool) -> None:
        depths, normal = depths_of(self.n_points, self.batch_size, seed), self._noise(seed)
        start, layer_noise = normal(), normal()
        if plain:
            start = plain_states(self.hierarchy, self.phi, self.log_gamma, start, depths - 1, normal)
        index = (self.hierarchy.n_layers - depths).to(self.device)
        self.f.requires_grad_(False)
        if plain:
            losses = _phi_loss_at(self, start, index, layer_noise)
        else:
            losses = phi_loss(
                self.hierarchy, Networks(self.phi, self.f, self.teacher), self.log_gamma, start,
                self._on_both_sides(depths), layer_noise, normal,
            )  # fmt: skip
        self.f.requires_grad_(True)
        losses.mean().backward()

    def update_f(self, seed: int, plain: bool, n_pairs: int = 1) -> None:
        normal = self._noise(seed)
        start = normal()
        depths = depths_of(self.n_points, self.batch_size, seed)
        if n_pairs > 1:
            uniform = Noise(seed, "depths", torch.arange(self.batch_size)).uniform(self.hierarchy.n_layers)
            pairs = uniform.argsort(dim=1)[:, :n_pairs] + 1
        else:
            pairs = depths[:, None]
        if plain:
            states = plain_states(self.hierarchy, self.phi, self.log_gamma, start, depths - 1, normal)
            index = (self.hierarchy.n_layers - depths).to(self.device)
            with torch.no_grad():
                transition = apply_layer(self.hierarchy, self.phi, self.log_gamma, states, index, normal())
            estimates = self.f(transition.state, self.hierarchy.labels[index])
            losses = ((estimates - transition.target) ** 2).flatten(1).sum(1)
        else:
            losses = f_loss(self.hierarchy, self.phi, self.log_gamma, self.f, start, self._on_both_sides(pairs), normal)
        losses.mean().backward()

    def measure(self, updates: Sequence[Callable[[int], None]], n_repeats: int) -> list[tuple[float, float]]:
        """Seconds of each update and evaluations of phi for each sample in it, means over fresh noise.

        The updates take turns, so that whatever else the machine does falls on all of them.
        """
        seconds, evaluated = [0.0] * len(updates), [0] * len(updates)
        for seed in range(n_repeats + 1):
            for place, update in enumerate(updates):
                self.n_evaluated = 0
                started = time.perf_counter()
                update(seed)
                self._wait()
                if seed > 0:  # the first round warms up
                    seconds[place] += time.perf_counter() - started
                    evaluated[place] += self.n_evaluated
        n_samples = n_repeats * self.batch_size
        return [(spent / n_repeats, n / n_samples) for spent, n in zip(seconds, evaluated, strict=True)]

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _phi_loss_at(updates: Updates, state: torch.Tensor, index: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    transition = apply_layer(updates.hierarchy, updates.phi, updates.log_gamma, state, index, noise)
    labels = updates.hierarchy.labels[index]
    wanted = updates.teacher(transition.state, labels)
    difference = updates.f(transition.state, labels) - wanted
    return (2 * difference * (transition.target - wanted) - difference**2).flatten(1).sum(1)


def rows(batch_size: int, n_channels: int, n_repeats: int, device: torch.device) -> Iterator[str]:
    yield "N   update  phi evaluations a sample: plain  ours  ratio   seconds: plain  ours   ratio"
    for n_points in N_POINTS:
        updates = Updates(n_points, batch_size, n_channels, device)
        for name, update in (("phi", updates.update_phi), ("f", updates.update_f)):
            both = [partial(update, plain=plain) for plain in (True, False)]
            (plain, plain_evaluations), (ours, our_evaluations) = updates.measure(both, n_repeats)
            yield (
                f"{n_points:<3} {name:<26} {plain_evaluations:14.2f} {our_evaluations:5.2f} "
                f"{our_evaluations / plain_evaluations:6.3f} {plain:16.3f} {ours:5.3f} {ours / plain:7.3f}"
            )
    yield "N   pairs of a chain   phi evaluations a pair   seconds a pair, relative to one pair"
    for n_points in N_POINTS:
        updates = Updates(n_points, batch_size, n_channels, device)
        numbers = (1, 2, n_points - 1)
        measured = updates.measure([partial(updates.update_f, plain=False, n_pairs=n) for n in numbers], n_repeats)
        base = measured[0][0]
        for n_pairs, (seconds, evaluations) in zip(numbers, measured, strict=True):
            yield f"{n_points:<3} {n_pairs:<18} {evaluations / n_pairs:14.2f} {seconds / n_pairs / base:24.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hsivi_rollout", description=__doc__)
    parser.add_argument("--batch_size", type=int, default=128, help="samples of an update")
    parser.add_argument("--n_channels", type=int, default=16, help="base width of the networks (16x16 images)")
    parser.add_argument("--n_repeats", type=int, default=3, help="updates timed of each kind")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args()
    for line in rows(options.batch_size, options.n_channels, options.n_repeats, torch.device(options.device)):
        print(line, flush=True)


if __name__ == "__main__":
    main()
