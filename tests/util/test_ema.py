import copy

import pytest
import torch
from torch import nn

from util.ema import ExponentialMovingAverage
from util.errors import UsageError


def make_network() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 2))
    network[0].bias.requires_grad_(False)
    return network


def take_step(network: nn.Module) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))


def test_only_trainable_parameters_have_shadows():
    ema = ExponentialMovingAverage(make_network().named_parameters(), 0.9)
    assert list(ema.shadow) == ["0.weight", "2.weight", "2.bias"]


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9999, 1.0])
def test_update_follows_the_warm_up_rule(decay):
    network = make_network()
    ema = ExponentialMovingAverage(network.named_parameters(), decay)
    expected = network[2].weight.detach().double()
    for n in range(1, 60):
        take_step(network)
        ema.update()
        d = min(decay, (1 + n) / (10 + n))
        expected = d * expected + (1 - d) * network[2].weight.detach().double()
    assert ema.n_updates == 59
    torch.testing.assert_close(ema.shadow["2.weight"].double(), expected, rtol=1e-5, atol=1e-6)


def test_average_weights_swaps_without_copies_and_restores_bits():
    network = make_network()
    ema = ExponentialMovingAverage(network.named_parameters(), 0.5)
    take_step(network)
    ema.update()
    raw = copy.deepcopy(network.state_dict())
    averaged = {name: shadow.clone() for name, shadow in ema.shadow.items()}
    pointers = {tensor.data_ptr() for tensor in (*network.parameters(), *ema.shadow.values())}
    with ema.average_weights():
        for name, parameter in network.named_parameters():
            assert torch.equal(parameter, averaged.get(name, raw[name]))
            assert parameter.data_ptr() in pointers
    assert all(torch.equal(tensor, raw[name]) for name, tensor in network.state_dict().items())
    assert all(torch.equal(tensor, averaged[name]) for name, tensor in ema.shadow.items())


def test_weights_come_back_after_an_exception():
    network = make_network()
    ema = ExponentialMovingAverage(network.named_parameters(), 0.5)
    take_step(network)
    raw = copy.deepcopy(network.state_dict())
    with pytest.raises(KeyError), ema.average_weights():
        raise KeyError
    assert all(torch.equal(tensor, raw[name]) for name, tensor in network.state_dict().items())
    ema.update()


@pytest.mark.parametrize("operation", ["update", "state_dict"])
def test_the_averages_cannot_be_taken_for_the_weights(operation):
    ema = ExponentialMovingAverage(make_network().named_parameters(), 0.5)
    with ema.average_weights():
        with pytest.raises(RuntimeError, match=operation):
            getattr(ema, operation)()
        with pytest.raises(RuntimeError, match="average_weights"), ema.average_weights():
            pass


def test_optimiser_trains_the_same_parameters_after_a_swap():
    network = make_network()
    ema = ExponentialMovingAverage(network.named_parameters(), 0.5)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    with ema.average_weights():
        pass
    before = network[2].weight.detach().clone()
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    torch.testing.assert_close(network[2].weight, before - 0.1 * network[2].weight.grad)


def test_state_survives_a_file(tmp_path):
    network = make_network()
    ema = ExponentialMovingAverage(network.named_parameters(), 0.7)
    for _ in range(3):
        take_step(network)
        ema.update()
    torch.save(ema.state_dict(), tmp_path / "ema.pth")
    other = ExponentialMovingAverage(make_network().named_parameters(), 0.1)
    other.load_state_dict(torch.load(tmp_path / "ema.pth", weights_only=True))
    assert other.decay == 0.7
    assert other.n_updates == 3
    assert all(torch.equal(other.shadow[name], shadow) for name, shadow in ema.shadow.items())


def remove(shadow):
    del shadow["2.bias"]


def add(shadow):
    shadow["3.bias"] = torch.zeros(1)


def reshape(shadow):
    shadow["0.weight"] = torch.zeros(4, 5)


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (remove, "missing 2.bias"),
        (add, "unexpected 3.bias"),
        (reshape, r"0.weight has shape \(4, 5\) instead of \(4, 3\)"),
    ],
)
def test_other_states_are_refused_whole(alter, message):
    ema = ExponentialMovingAverage(make_network().named_parameters(), 0.7)
    before = {name: shadow.clone() for name, shadow in ema.shadow.items()}
    state = ema.state_dict()
    state["shadow"] = {name: shadow + 1 for name, shadow in before.items()}
    alter(state["shadow"])
    with pytest.raises(UsageError, match=message) as caught:
        ema.load_state_dict(state)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(ema.shadow[name], shadow) for name, shadow in before.items())


def test_unknown_layout_and_bad_decay_are_refused():
    ema = ExponentialMovingAverage(make_network().named_parameters(), 0.7)
    with pytest.raises(UsageError, match="num_updates"):
        ema.load_state_dict({"decay": 0.7, "num_updates": 3, "shadow_params": []})
    with pytest.raises(UsageError, match="outside"):
        ExponentialMovingAverage(make_network().named_parameters(), 1.5)


def test_restart_begins_with_the_weights_as_they_are():
    network = make_network()
    ema = ExponentialMovingAverage(network.named_parameters(), 0.7)
    take_step(network)
    ema.update()
    ema.restart()
    fresh = ExponentialMovingAverage(network.named_parameters(), 0.7)
    assert ema.n_updates == 0
    assert all(torch.equal(shadow, fresh.shadow[name]) for name, shadow in ema.shadow.items())
