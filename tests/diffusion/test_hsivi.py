"""The layers of HSIVI: what is evaluated how often, what depends on what, and a case with a known answer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffusion.discrete.hsivi import (
    Hierarchy,
    apply_layer,
    make_hierarchy,
    sampling_layers,
)
from diffusion.discrete.schedule import choose_labels
from tests.golden.hsivi_setup import StandIn
from tests.spelling import f_loss, make_schedule, mirror, phi_loss, roll_out, states_at
from util.errors import UsageError
from util.noise import Noise

SHAPE = (2, 3, 3)


def hierarchy_of(n_points: int, eta: float = 0.2) -> Hierarchy:
    schedule = make_schedule("linear", 1000).subset(choose_labels("quad", n_points))
    return make_hierarchy(schedule.labels, schedule.one_minus_alphas_bar, eta)


class Counted(nn.Module):
    """A network that counts the samples it is given, and can be looked at with hooks."""

    def __init__(self, *weights: float) -> None:
        super().__init__()
        self.network = StandIn(torch.tensor(weights).numpy(), torch.float64)
        self.n_samples = self.n_with_gradients = 0
        self.register_forward_hook(self.count)

    def count(self, _module: nn.Module, inputs: tuple[torch.Tensor, ...], _output: torch.Tensor) -> None:
        self.n_samples += len(inputs[0])
        self.n_with_gradients += len(inputs[0]) if torch.is_grad_enabled() else 0

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.network(x, t)


def networks() -> tuple[Counted, Counted, Counted]:
    return Counted(0.5, 0.3, 0.2, 0.1), Counted(0.4, 0.35, 0.1, 0.2), Counted(0.45, 0.3, 0.15, 0.1)


def depths_of(n_points: int, batch_size: int, published_behaviour: bool = False) -> torch.Tensor:
    places = torch.arange(batch_size)
    source, mirrored = mirror(places, batch_size, published_behaviour)
    drawn = Noise(3, "depth", source).integers(n_points - 1) + 1
    return torch.where(mirrored, n_points - drawn, drawn)


def normals(noise: Noise):
    return lambda: noise.normal(*SHAPE, dtype=torch.float64)


def plain_states(hierarchy, phi, log_gamma, start, depths, normal):
    """The roll-out of the public code: everybody passes the layers of the deepest sample."""
    states = [start]
    for passed in range(1, int(depths.max()) + 1):
        index = torch.full((len(start),), hierarchy.n_layers - passed)
        states.append(apply_layer(hierarchy, phi, log_gamma, states[-1], index, normal()).state)
    return torch.stack([states[depth][row] for row, depth in enumerate(depths.tolist())])


@pytest.mark.parametrize("n_points", [6, 11, 16])
def test_roll_out_is_the_plain_one_with_three_fifths_of_its_evaluations_or_fewer(n_points):
    hierarchy, batch_size = hierarchy_of(n_points), 128
    phi, f, teacher = networks()
    log_gamma = torch.full(SHAPE, 0.1, dtype=torch.float64)
    depths = depths_of(n_points, batch_size)
    indices = torch.arange(batch_size)
    start = Noise(0, "start", indices).normal(*SHAPE, dtype=torch.float64)
    expected = plain_states(hierarchy, phi, log_gamma, start, depths - 1, normals(Noise(0, "chain", indices)))
    n_plain = phi.n_samples + batch_size  # the trained layer is evaluated once more for everybody
    assert n_plain == batch_size * int(depths.max())

    phi.n_samples = phi.n_with_gradients = 0
    chain = normals(Noise(0, "chain", indices))
    torch.testing.assert_close(states_at(hierarchy, phi, log_gamma, start, depths - 1, chain), expected)
    assert phi.n_samples == int((depths - 1).sum())

    phi.n_samples = 0
    noise = normals(Noise(0, "phi", indices))
    phi_loss(hierarchy, phi, log_gamma, f, teacher, start, depths, noise(), noise)
    assert phi.n_samples == int(depths.sum()) == batch_size * n_points // 2
    assert phi.n_with_gradients == batch_size
    assert phi.n_samples / n_plain <= 0.6
    assert f.n_samples == teacher.n_samples == batch_size

    phi.n_samples = phi.n_with_gradients = f.n_samples = 0
    f_loss(hierarchy, phi, log_gamma, f, start, depths[:, None], normals(Noise(0, "f", indices)))
    assert phi.n_samples / n_plain <= 0.6
    assert phi.n_with_gradients == 0
    assert f.n_samples == batch_size


@pytest.mark.parametrize("loss", ["phi", "f"])
def test_a_sample_does_not_depend_on_its_batch(loss):
    hierarchy, indices = hierarchy_of(6), torch.arange(8)
    depths = depths_of(6, 8)

    def losses(rows: torch.Tensor) -> torch.Tensor:
        phi, f, teacher = networks()
        log_gamma = torch.zeros(1, dtype=torch.float64)
        noise = normals(Noise(0, loss, indices[rows]))
        start, layer_noise = noise(), noise()
        if loss == "phi":
            return phi_loss(hierarchy, phi, log_gamma, f, teacher, start, depths[rows], layer_noise, noise)
        return f_loss(hierarchy, phi, log_gamma, f, start, depths[rows][:, None], noise)

    apart = torch.cat([losses(rows) for rows in (indices[:3], indices[3:4], indices[4:])])
    torch.testing.assert_close(losses(indices), apart, rtol=1e-12, atol=1e-12)


def test_several_pairs_of_a_chain_are_those_of_single_depths():
    hierarchy, indices = hierarchy_of(6), torch.arange(4)
    depths = torch.tensor([[1, 5], [2, 3], [4, 1], [5, 2]])
    start = Noise(0, "start", indices).normal(*SHAPE, dtype=torch.float64)

    def losses(depths: torch.Tensor) -> torch.Tensor:
        phi, f, _ = networks()
        chain = normals(Noise(0, "chain", indices))
        return f_loss(hierarchy, phi, torch.zeros(1, dtype=torch.float64), f, start, depths, chain)

    one_by_one = torch.stack([losses(depths[:, :1]), losses(depths[:, 1:])])
    torch.testing.assert_close(losses(depths), one_by_one.mean(0))


def test_layers_pass_only_those_who_need_them():
    hierarchy, depths = hierarchy_of(6), torch.tensor([0, 3, 1, 3, 5])
    phi, _, _ = networks()
    noise = normals(Noise(0, "chain", torch.arange(5)))
    start, log_gamma = noise(), torch.zeros(1, dtype=torch.float64)
    passed_by = {
        passed: set(rows.tolist()) for passed, rows, _ in roll_out(hierarchy, phi, log_gamma, start, depths, noise)
    }
    assert passed_by == {1: {1, 2, 3, 4}, 2: {1, 3, 4}, 3: {1, 3, 4}, 4: {4}, 5: {4}}


@pytest.mark.parametrize("published_behaviour", [False, True])
@pytest.mark.parametrize("batch_size", [7, 16])
def test_mirrored_depths_are_uniform_and_pairs_pass_n_layers(batch_size, published_behaviour):
    n_points = 6
    source, mirrored = mirror(torch.arange(batch_size), batch_size, published_behaviour)
    assert not mirrored[source].any()
    partners = source[mirrored]
    assert len(set(partners.tolist())) == len(partners)
    n_unpaired = batch_size - 2 * len(partners)
    assert n_unpaired == {(7, False): 1, (7, True): 1, (16, False): 0, (16, True): 2}[batch_size, published_behaviour]
    drawn = Noise(1, "depth", torch.arange(50_000)).integers(n_points - 1) + 1
    for depths in (drawn, n_points - drawn):
        shares = depths.bincount(minlength=n_points)[1:] / len(depths)
        torch.testing.assert_close(shares, torch.full((n_points - 1,), 0.2), rtol=0, atol=0.01)


def test_exact_noise_prediction_keeps_gaussian_data_gaussian():
    """For N(0, s^2) data the best prediction is linear; with many layers the sampler ends near the data."""
    deviation, n_points, n_samples = 0.5, 100, 1000
    schedule = make_schedule("linear", 1000).subset(choose_labels("uniform", n_points))
    hierarchy = make_hierarchy(schedule.labels, schedule.one_minus_alphas_bar, 0.2)
    by_label = dict(zip(schedule.labels.tolist(), schedule.one_minus_alphas_bar.tolist(), strict=True))

    def phi(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        variance = torch.tensor([by_label[int(label)] for label in t], dtype=x.dtype)[:, None, None, None]
        return variance.sqrt() * x / ((1 - variance) * deviation**2 + variance)

    noise = normals(Noise(0, "sample", torch.arange(n_samples)))
    *_, last = sampling_layers(hierarchy, phi, torch.zeros(1, dtype=torch.float64), noise(), noise)
    assert not last.noise.any()
    assert last.state.std().item() == pytest.approx(deviation, rel=0.03)


def test_eta_out_of_range():
    schedule = make_schedule("linear", 1000).subset(choose_labels("quad", 6))
    for eta in (0.0, 1.5):
        with pytest.raises(UsageError, match="eta"):
            make_hierarchy(schedule.labels, schedule.one_minus_alphas_bar, eta)


def test_spread_is_ddims_and_at_most_the_level():
    hierarchy = hierarchy_of(11, eta=1.0)
    alphas_bar = hierarchy.signal**2
    ddpm = (1 - alphas_bar[:-1]) / (1 - alphas_bar[1:]) * (1 - alphas_bar[1:] / alphas_bar[:-1])
    torch.testing.assert_close(hierarchy.spread**2, ddpm)
    torch.testing.assert_close(hierarchy.spread**2 + hierarchy.direction**2, hierarchy.sigma[:-1] ** 2)
