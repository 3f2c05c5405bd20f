"""What a likelihood costs and leaves behind, and its units."""

import math

import pytest
import torch
from torch import nn

from diffusion.bits import PixelScale, gaussian_entropy, in_bits_per_dimension
from diffusion.continuous.likelihood import OdeLogLikelihood, negative_log_likelihood_terms
from diffusion.continuous.process import split
from diffusion.continuous.score import make_score
from tests.diffusion.settings import PROCESSES
from tests.spelling import ode_log_likelihood

CLD = PROCESSES["CLD, constant beta"]
OPTIONS = {"start": 1e-5, "solver": "RK45", "rtol": 1e-4, "atol": 1e-4}


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)
        nn.init.normal_(self.linear.weight, generator=torch.Generator().manual_seed(3))
        nn.init.zeros_(self.linear.bias)
        self.n_calls = 0

    def forward(self, u, t):
        self.n_calls += 1
        return torch.tanh(self.linear(u)) + t[:, None]


@pytest.mark.parametrize("grad_mode", [torch.enable_grad, torch.no_grad])
def test_one_network_evaluation_for_drift_and_divergence_and_no_graph_left(grad_mode):
    network = Network()
    score = make_score(CLD, network, mixed=True)
    u0, probe = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    with grad_mode():
        result = ode_log_likelihood(CLD, score, u0, probe, **OPTIONS)
    assert network.n_calls == result.n_evaluations
    for tensor in (result.final_state, result.divergence, *result.prior.values(), result.log_density):
        assert tensor.dtype == torch.float64
        assert not tensor.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())


def test_divergence_of_a_gaussian_probe_is_unbiased():
    """Averaged over many probes it comes to the sum over unit probes, which is exact."""
    network = Network()
    score = make_score(CLD, network, mixed=True)
    generator = torch.Generator().manual_seed(0)
    u0 = torch.randn(1, 4, generator=generator)
    options = {**OPTIONS, "solver": "rk4", "n_steps": 20, "start": 0.1}
    exact = ode_log_likelihood(CLD, score, u0.repeat(4, 1), torch.eye(4), **options).divergence.sum()
    n_probes = 20_000
    probes = torch.randn(n_probes, 4, generator=generator)
    estimates = ode_log_likelihood(CLD, score, u0.repeat(n_probes, 1), probes, **options).divergence
    standard_error = estimates.std() / math.sqrt(n_probes)
    assert (estimates.mean() - exact).abs() < 4 * standard_error
    assert standard_error < 0.1 * exact.abs()


def test_published_start_time_is_float32():
    times = []

    def score(u, t):
        times.append(t[0].item())
        return -split(CLD, u)[1]

    u0 = torch.ones(1, 4)
    for flag in (False, True):
        ode_log_likelihood(CLD, score, u0, u0, **{**OPTIONS, "start": 0.1}, published_behaviour=flag)
        expected = torch.tensor(0.1, dtype=torch.float32 if flag else torch.float64).item()
        assert times[0] == pytest.approx(expected, rel=1e-15)
        times.clear()


def test_terms_add_up_and_velocity_entropy_is_that_of_its_distribution():
    parts = torch.arange(6, dtype=torch.float64).reshape(3, 2)
    likelihood = OdeLogLikelihood(torch.zeros(2, 6, 1, 1), parts[0], {"x": parts[1], "v": parts[2]}, 7)
    terms = negative_log_likelihood_terms(CLD, likelihood)
    assert set(terms) == {"prior_x", "prior_v", "divergence", "velocity_entropy"}
    velocity = torch.distributions.Normal(0.0, CLD.velocity_variance**0.5)
    entropy = 3 * velocity.entropy().item()
    assert gaussian_entropy(CLD.velocity_variance, 3) == pytest.approx(entropy, rel=1e-6)
    torch.testing.assert_close(sum(terms.values()), -likelihood.log_density - gaussian_entropy(0.01, 3))

    in_bits = in_bits_per_dimension(terms, 3, PixelScale())
    expected = sum(terms.values()) / (3 * math.log(2)) + 7
    torch.testing.assert_close(sum(in_bits.values()), expected)


@pytest.mark.parametrize("n_levels", [256, 32])
@pytest.mark.parametrize("centered", [True, False])
def test_uniform_pixels_cost_all_their_bits(n_levels, centered):
    """The uniform density on data space costs log2(n_levels) bits/dim."""
    scale = PixelScale(n_levels, centered)
    n_dimensions = 12
    width = 2.0 if centered else 1.0
    nats = torch.full((1,), n_dimensions * math.log(width), dtype=torch.float64)
    value = sum(in_bits_per_dimension({"uniform": nats}, n_dimensions, scale).values())
    assert value.item() == pytest.approx(math.log2(n_levels))


@pytest.mark.parametrize("centered", [True, False])
def test_dequantized_pixels_fill_data_space(centered):
    scale = PixelScale(256, centered)
    pixels = torch.arange(256, dtype=torch.uint8)
    low = scale.dequantize(pixels, torch.zeros(256))
    high = scale.dequantize(pixels, torch.full((256,), 1 - 2**-10))
    assert low.dtype == torch.float32
    assert low[0] == (-1 if centered else 0)
    assert 1 - high[-1] < 1e-4
    # Half way into its bin, every grey level comes back.
    middle = scale.to_unit_interval(scale.dequantize(pixels, torch.full((256,), 0.5)))
    assert torch.equal((middle * 256).floor().to(torch.uint8), pixels)


def test_to_unit_interval_clips_but_does_not_hide_nan():
    values = PixelScale().to_unit_interval(torch.tensor([-3.0, 0.0, 5.0, math.nan]))
    assert values[:3].tolist() == [0.0, 0.5, 1.0]
    assert values[3].isnan()
