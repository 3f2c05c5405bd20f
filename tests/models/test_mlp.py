import copy

import pytest
import torch
import torch.nn.functional as F

from models.mlp import MLP, time_features


@pytest.fixture
def network() -> MLP:
    torch.manual_seed(0)
    network = MLP(4, 2, n_hidden=32, n_layers=2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


def test_shapes_gradients_and_float64(network):
    u, t = torch.randn(5, 4), torch.tensor([0.0, 1e-5, 1e-3, 0.5, 1.0])
    y = network(u, t)
    assert y.shape == (5, 2)
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())
    exact = copy.deepcopy(network).double()(u.double(), t.double())
    torch.testing.assert_close(y.double(), exact, rtol=1e-3, atol=1e-4)


def test_derivative_with_respect_to_the_state(network):
    network = network.double()
    t = torch.tensor([0.01, 0.3], dtype=torch.float64)
    u = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda state: network(state, t), u)


def test_samples_do_not_mix(network):
    u, t = torch.randn(5, 4), torch.rand(5)
    torch.testing.assert_close(network(u[1:2], t[1:2]), network(u, t)[1:2])


def test_decades_of_time_are_resolved():
    t = torch.tensor([0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0])
    features = time_features(t)
    assert features.isfinite().all()
    assert torch.equal(features[0, 2:], features[1, 2:])
    steps = (features[2:] - features[1:-1]).norm(dim=1)
    assert steps.min() > 0.5


def test_autocast_is_near_full_precision(network):
    u, t = torch.randn(64, 4), torch.rand(64)
    y = network(u, t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = network(u, t)
    assert F.mse_loss(rounded.float(), y) < 1e-3 * y.square().mean()


def test_learns_a_pattern_that_moves_with_time():
    """Oscillations in position, displaced by time times velocity."""
    torch.manual_seed(0)
    network = MLP(2, 1, n_hidden=48, n_layers=2)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(300):
        u, t = 2 * torch.rand(256, 2) - 1, torch.rand(256)
        target = torch.sin(8 * (u[:, :1] - t[:, None] * u[:, 1:]))
        loss = F.mse_loss(network(u, t), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-20:]) / 20 < 0.01 * losses[0]
