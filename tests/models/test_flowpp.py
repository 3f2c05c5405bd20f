"""Flow++: normalisation on the first batch, invertibility, determinants, and arithmetic far out in the tails."""

import copy
import math
import threading

import pytest
import torch

from models.flowpp import logistic_mixture
from models.flowpp.coupling import floored_log_odds
from models.flowpp.dequantizer import Dequantizer
from models.flowpp.layers import Convolution, NormalizedConvolution
from tests.patience import PATIENCE
from tests.spelling import ActivationNorm, DequantizerSettings, initialize_from_data
from util.errors import UsageError

SMALL = {"n_couplings": 2, "n_filters": 8, "n_blocks": 1, "n_components": 3, "n_heads": 2, "n_context_blocks": 1,
         "context_channels": 8}  # fmt: skip
ARCHITECTURES = ["cifar10", "imagenet32"]


def draw_network(architecture: str, channels: int = 1, seed: int = 0, **settings) -> Dequantizer:
    torch.manual_seed(seed)
    return Dequantizer(DequantizerSettings((channels, 4, 4), architecture, **{**SMALL, **settings}))


def batch(n: int, channels: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(n, channels, 4, 4, generator=generator)
    return noise, torch.randint(256, noise.shape, generator=generator) / 255


def alone(sums: torch.Tensor) -> torch.Tensor:
    return sums


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_layer_is_normalised_on_the_first_batch(architecture):
    network, inputs = draw_network(architecture), batch(64)
    initialize_from_data(network, inputs, alone)
    outputs = {}
    for name, module in network.named_modules():
        if isinstance(module, Convolution | NormalizedConvolution | ActivationNorm):
            module.register_forward_hook(lambda module, _inputs, output, name=name: outputs.update({name: output}))
    with torch.no_grad():
        network(*inputs)
    assert len(outputs) > 10
    for name, output in outputs.items():
        norm = isinstance(output, tuple)
        values = output[0] if norm else output
        dims = (0,) if norm else (0, 2, 3)
        scale = 1.0 if norm else network.get_submodule(name).init_scale
        deviation = values.var(dims, correction=0).sqrt()
        assert values.mean(dims).abs().max() < 1e-4 * scale, name
        # Layers that see almost nothing keep a smaller deviation: 1e-6 is added to the variance.
        assert deviation.max() < 1.001 * scale, name
        assert deviation.median() > 0.98 * scale, name


def test_the_public_code_takes_other_statistics_for_plain_layers():
    ours, theirs, inputs = draw_network("cifar10"), draw_network("cifar10"), batch(64)
    initialize_from_data(ours, inputs, alone)
    initialize_from_data(theirs, inputs, alone, seed=3, published_behaviour=True)
    again = draw_network("cifar10")
    initialize_from_data(again, inputs, alone, seed=3, published_behaviour=True)
    for first, second in zip(theirs.parameters(), again.parameters(), strict=True):
        assert first.equal(second)
    layer = theirs.context.input
    assert not layer.bias.allclose(ours.context.input.bias)
    _, image = inputs
    halves = torch.cat([image[..., 0::2], image[..., 1::2]], dim=1) - 0.5
    mean = layer(halves).mean((0, 2, 3))
    assert mean.abs().max() > 0.1


def over_ranks(n_ranks: int, work) -> list:
    """Runs ``work(rank, total)`` on threads, ``total`` adding up over them."""
    barrier, sums, results = threading.Barrier(n_ranks), [None] * n_ranks, [None] * n_ranks

    def run(rank: int) -> None:
        def total(values: torch.Tensor) -> torch.Tensor:
            sums[rank] = values
            barrier.wait(PATIENCE)
            result = torch.stack(sums).sum(0)
            barrier.wait(PATIENCE)
            return result

        results[rank] = work(rank, total)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(n_ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_initial_weights_do_not_depend_on_where_the_batch_is(architecture, published):
    drawn, (noise, image) = draw_network(architecture), batch(12)

    def initialized(inputs, total):
        network = copy.deepcopy(drawn)
        initialize_from_data(network, inputs, total, published_behaviour=published)
        return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])

    whole = initialized((noise, image), alone)
    assert not whole.equal(torch.cat([parameter.detach().flatten() for parameter in drawn.parameters()]))
    # The parts need not be of one size.
    cuts = [slice(0, 3), slice(3, 5), slice(5, 12)]
    for part in over_ranks(3, lambda rank, total: initialized((noise[cuts[rank]], image[cuts[rank]]), total)):
        assert part.equal(whole)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("channels", [1, 3])
def test_inverse_and_determinant(architecture, channels):
    network = draw_network(architecture, channels)
    inputs = batch(6, channels)
    initialize_from_data(network, inputs, alone)
    network.double()
    noise, image = (entry.double() for entry in inputs)
    u, minus_log_q = network(noise, image)
    assert ((u > 0) & (u < 1)).all()
    back, again = network.inverse(u, image)
    torch.testing.assert_close(back, noise, rtol=0, atol=1e-8)
    torch.testing.assert_close(again, minus_log_q, rtol=1e-9, atol=0)

    jacobian = torch.autograd.functional.jacobian(lambda entry: network(entry, image[:1])[0], noise[:1])
    log_determinant = torch.linalg.slogdet(jacobian.reshape(noise[0].numel(), -1))[1]
    log_normal = -0.5 * (noise[0].square() + math.log(2 * math.pi)).sum()
    torch.testing.assert_close(minus_log_q[0], log_determinant - log_normal)


def test_log_odds_far_out():
    """Float32 against float64 where the distribution function has long rounded to 0 or 1."""
    x = torch.tensor([-300.0, -80.0, -10.0, 0.0, 10.0, 80.0, 300.0])
    mixture = tuple(torch.tensor(entry).expand(7, 2) for entry in ([0.3, -0.2], [-1.0, 2.0], [0.0, -1.0]))
    exact = logistic_mixture.log_odds(x.double(), tuple(part.double() for part in mixture))
    for value, reference in zip(logistic_mixture.log_odds(x, mixture), exact, strict=True):
        torch.testing.assert_close(value.double(), reference, rtol=1e-5, atol=1e-5)
    # Far out the component of the largest scale decides, whose log-odds are x / scale.
    torch.testing.assert_close(exact[0][-1] - exact[0][-2], torch.tensor(220.0, dtype=torch.float64))
    theirs, _ = floored_log_odds(x, mixture)
    assert theirs[-1] < 17


def test_log_derivative_is_the_derivative():
    x = torch.linspace(-30, 30, 50, dtype=torch.float64).requires_grad_()
    mixture = tuple(torch.tensor(entry, dtype=torch.float64).expand(50, 2) for entry in ([0, 1], [-3, 4], [0.5, -1]))
    log_odds, log_derivative = logistic_mixture.log_odds(x, mixture)
    (derivative,) = torch.autograd.grad(log_odds.sum(), x)
    torch.testing.assert_close(derivative.log(), log_derivative)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverse_of_the_log_odds(dtype):
    generator = torch.Generator().manual_seed(0)
    mixture = tuple(3 * torch.randn(200, 4, generator=generator, dtype=dtype) for _ in range(3))
    target = 100 * torch.randn(200, generator=generator, dtype=dtype)
    x = logistic_mixture.inverse_log_odds(target, mixture)
    step = 8 * torch.finfo(dtype).eps * (x.abs() + 1)
    assert (logistic_mixture.log_odds(x - step, mixture)[0] <= target + 1e-4).all()
    assert (logistic_mixture.log_odds(x + step, mixture)[0] >= target - 1e-4).all()


def test_gains_below_the_public_floor():
    """The public code's logarithm of a tiny gain is not that of the gain it applies."""
    noise = torch.randn(2, 1, 4, 2)
    determinants = {}
    for published in (False, True):
        norm = ActivationNorm((1, 4, 2), published)
        with torch.no_grad():
            norm.gain.fill_(1e-9)
        determinants[published] = norm(noise)[1]
    assert determinants[False].allclose(torch.tensor(8 * math.log(1e-9), dtype=torch.float64))
    assert determinants[True].allclose(torch.tensor(8 * math.log(1e-7), dtype=torch.float64))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_shape": (1, 5, 5)}, "image_size 5"),
        ({"n_filters": 6, "n_heads": 4}, "dequantizer_n_filters 6"),
        ({"architecture": "imagenet32", "context_channels": 6}, "dequantizer_context_channels 6"),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(UsageError, match=message):
        DequantizerSettings(**{"image_shape": (1, 4, 4), **settings})
