"""INDM's flow: inverse, log-determinant estimators, gradients, noise, and what it refuses."""

import math

import pytest
import scipy.stats
import torch

from models.residual_flow import FlowNoise, FlowSettings, InvertibleFlow, draw_flow_noise, log_determinant
from models.residual_flow.log_determinant import (
    SERIES_EXACT_TERMS,
    SURROGATE_EXACT_TERMS,
    poisson_counts,
    reach_probability,
    roulette_weights,
    series,
)
from models.residual_flow.residual_block import BLOCK_LIPSCHITZ_CONSTANT, ResidualBlock
from tests.spelling import InverseSettings
from util.errors import RunFailed, UsageError
from util.noise import Noise

N_DRAWS = 10_000


def with_large_jacobian(module: torch.nn.Module) -> torch.nn.Module:
    """One dominant tap in each kernel row, near which the bound on kernels lets Jacobians be largest."""
    for block in module.modules():
        if isinstance(block, ResidualBlock):
            for layer in block.nnet.values():
                n_outputs, n_inputs, size, _ = layer.weight.shape
                inputs = torch.arange(n_outputs) % n_inputs
                layer.weight.data[torch.arange(n_outputs), inputs, size // 2, size // 2] += 10 * torch.randn(n_outputs)
    return module


@pytest.fixture
def flow():
    torch.manual_seed(0)
    settings = FlowSettings(
        image_channels=2,
        image_size=8,
        n_blocks=(2, 2),
        hidden_channels=16,
        code_size=6,
        encoder_planes=(4, 4),
        encoder_out_planes=2,
        prior_hidden_size=8,
    )
    return with_large_jacobian(InvertibleFlow(settings)).eval()


@pytest.fixture
def block():
    torch.manual_seed(1)
    return with_large_jacobian(ResidualBlock(2, 8, 4, activates_input=True)).double()


@pytest.fixture
def point():
    """One input of the block, (1, 2, 4, 4), and its code."""
    torch.manual_seed(2)
    return torch.randn(1, 2, 4, 4, dtype=torch.float64), torch.randn(1, 4, dtype=torch.float64)


def noise_for(flow, n_samples, dtype=torch.float32, n_probes=1):
    shared = Noise(3, "counts", torch.zeros(1, dtype=torch.int64))
    return draw_flow_noise(flow, Noise(3, "flow", torch.arange(n_samples)), shared, n_probes, dtype)


def exact_jacobian(block, x, code):
    """dg/dx of one input, by automatic differentiation."""
    branch, offset = block.branch(code)
    n_values = x.numel()
    jacobian = torch.autograd.functional.jacobian(lambda v: branch(v, offset), x, create_graph=True)
    return jacobian.reshape(n_values, n_values)


@torch.no_grad()
def test_inverse_both_ways_whatever_the_batch(flow):
    x = torch.rand(256, 2, 8, 8)
    code = torch.randn(256, 6)
    noise = noise_for(flow, 256)
    z, _ = flow.transform(x, code, noise, "none")
    assert (z - x).abs().max() > 0.1
    assert (flow.inverse(z, code) - x).abs().max() <= 1e-5

    latents = torch.randn(256, 2, 8, 8)
    # One that takes far longer than the others to converge, and one that takes no time.
    latents[3], latents[7] = 50 * latents[3], 0.0
    data, iterations = flow.inverse_with_iterations(latents, code)
    assert (flow.transform(data, code, noise, "none")[0] - latents)[:3].abs().max() <= 1e-5
    relative = (flow.transform(data, code, noise, "none")[0] - latents).abs() / (1 + latents.abs())
    assert relative.max() <= 1e-5
    for indices in ([0], [3], [7, 100], list(range(200, 256))):
        alone, alone_iterations = flow.inverse_with_iterations(latents[indices], code[indices])
        torch.testing.assert_close(alone, data[indices], rtol=1e-6, atol=2e-6)
        # Rounding differs between batch sizes, which can move a last change across the tolerance.
        assert (alone_iterations - iterations[indices]).abs().max() <= 3


@torch.no_grad()
def test_inverse_in_double_precision_is_as_near_as_asked(flow):
    flow.double()
    latents, code = torch.randn(8, 2, 8, 8, dtype=torch.float64), torch.randn(8, 6, dtype=torch.float64)
    noise = noise_for(flow, 8, torch.float64)
    errors = []
    for tolerance in (1e-3, 1e-6, 1e-12):
        x = flow.inverse(latents, code, InverseSettings(tolerance=tolerance))
        errors.append((flow.transform(x, code, noise, "none")[0] - latents).abs().max())
        assert errors[-1] <= 4 * tolerance * (1 + latents.abs().max())
    assert errors[0] > errors[1] > errors[2]


@torch.no_grad()
def test_inverse_that_does_not_converge_says_so(flow):
    latents, code = torch.randn(3, 2, 8, 8), torch.randn(3, 6)
    with pytest.raises(RunFailed, match="3 of 3 samples are not within 1e-06 after 2 iterations"):
        flow.inverse(latents, code, InverseSettings(max_iterations=2))
    latents[1, 0, 0, 0] = math.nan
    with pytest.raises(RunFailed, match="not finite"):
        flow.inverse(latents, code)


def draws(block, x, code, kind_exact_terms):
    """N_DRAWS random (probe, count), as one batch for each count: yields counts and probes (1, n, ...)."""
    generator = torch.Generator().manual_seed(4)
    uniforms = torch.rand(N_DRAWS, generator=generator, dtype=torch.float64)
    counts = torch.tensor(poisson_counts(uniforms, [block.poisson_rate] * N_DRAWS))
    for count in counts.unique().tolist():
        n_draws = int((counts == count).sum())
        probes = torch.randn(1, n_draws, *x.shape[1:], generator=generator, dtype=x.dtype)
        yield count, probes, x.expand(n_draws, -1, -1, -1), code.expand(n_draws, -1), kind_exact_terms


@pytest.mark.parametrize("n_exact_terms", [SERIES_EXACT_TERMS, SURROGATE_EXACT_TERMS])
@torch.no_grad()
def test_series_is_unbiased(block, point, n_exact_terms, capsys):
    """The mean of 10,000 draws is within three standard errors of the determinant of the Jacobian."""
    values = []
    for count, probes, x, code, n_exact in draws(block, *point, n_exact_terms):
        branch, offset = block.branch(code)
        _, jacobian = branch.linearize(x, offset)
        values.append(series(jacobian, probes, count, block.poisson_rate, BLOCK_LIPSCHITZ_CONSTANT, n_exact))
    values = torch.cat(values)
    matrix = exact_jacobian(block, *point)
    exact = torch.linalg.slogdet(torch.eye(len(matrix), dtype=matrix.dtype) + matrix).logabsdet
    assert exact.abs() > 0.1
    standard_error = values.std() / math.sqrt(N_DRAWS)
    assert (values.mean() - exact).abs() <= 3 * standard_error
    # The probe alone has variance |S|^2 for the symmetric part S of 2 log(I + J); the roulette adds to it.
    with capsys.disabled():
        print(
            f"\n{n_exact_terms} exact terms: {values.mean():.4f} +- {standard_error:.4f}, exactly {exact:.4f}; "
            f"variance of one draw {values.var():.4f}"
        )
    assert standard_error < 0.05


def test_gradient_of_surrogate_is_unbiased(block, point):
    x = point[0].clone().requires_grad_()
    matrix = exact_jacobian(block, x, point[1])
    eye = torch.eye(len(matrix), dtype=matrix.dtype)
    (expected,) = torch.autograd.grad(torch.linalg.slogdet(eye + matrix).logabsdet, x)
    gradients, values = [], []
    for count, probes, repeated, code, _ in draws(block, *point, None):
        repeated = repeated.clone().requires_grad_()
        _, value = block(repeated, code, probes, count, "surrogate")
        gradients += torch.autograd.grad(value.sum(), repeated)
        values.append(value.detach())
    gradients, values = torch.cat(gradients), torch.cat(values)
    deviations = (gradients.mean(0) - expected[0]).abs() / (gradients.std(0) / math.sqrt(N_DRAWS))
    # 32 numbers at once.
    assert deviations.max() <= 4
    assert deviations.square().mean().sqrt() <= 1.5
    assert expected.abs().max() > 0.1
    # The value is one of tr(J (I + J)^-1), not of the log-determinant.
    trace = torch.trace(torch.linalg.solve(eye + matrix, matrix))
    assert (values.mean() - trace).abs() <= 3 * values.std() / math.sqrt(N_DRAWS)


def plain_surrogate(block, x, code, probes, count):
    """The surrogate by automatic differentiation of g alone; its gradient must not go through ``series``."""
    branch, offset = block.branch(code)
    output = branch(x, offset)
    weights = roulette_weights(count + SURROGATE_EXACT_TERMS, SURROGATE_EXACT_TERMS, block.poisson_rate)
    vector, total = probes, probes.clone()
    for k, weight in enumerate(weights[1:], start=1):
        (vector,) = torch.autograd.grad(output, x, vector, retain_graph=True)
        total = total + (-1) ** k * weight * vector
    (product,) = torch.autograd.grad(output, x, total.detach(), create_graph=True)
    return x + output, (product * probes).flatten(1).sum(1)


@pytest.mark.parametrize("activates_input", [False, True])
def test_every_gradient_is_that_of_automatic_differentiation(activates_input):
    """For two vectors a point, and another weight for each point's output and surrogate."""
    torch.manual_seed(5)
    block = with_large_jacobian(ResidualBlock(2, 8, 4, activates_input)).double()
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    code = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    probes = torch.randn(2, 3, 2, 4, 4, dtype=torch.float64)
    output_weights = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    value_weights = torch.randn(3, dtype=torch.float64)
    inputs = [x, code, *(p for name, p in block.named_parameters() if name not in ("geom_p", "lamb"))]

    y, value = block(x, code, probes, 3, "surrogate")
    actual = torch.autograd.grad((y * output_weights).sum() + (value * value_weights).sum(), inputs)
    plain = [plain_surrogate(block, x, code, v, 3) for v in probes]
    torch.testing.assert_close(value, (plain[0][1] + plain[1][1]) / 2)
    objective = (plain[0][0] * output_weights).sum()
    objective = objective + ((plain[0][1] + plain[1][1]) / 2 * value_weights).sum()
    for ours, expected in zip(actual, torch.autograd.grad(objective, inputs), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-11)


def test_training_pass_keeps_nothing_the_size_of_hidden_values(flow):
    flow.train()
    x = torch.rand(8, 2, 8, 8)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.shape) or t, lambda t: t):
        code = torch.randn(8, 6)
        flow.transform(x, code, noise_for(flow, 8), "surrogate")
    n_hidden = 8 * 4 * 4 * 16
    largest_kernel = max(p.numel() for p in flow.generator.parameters())
    assert sizes
    assert max(shape.numel() for shape in sizes) <= max(x.numel(), largest_kernel) < n_hidden


@torch.no_grad()
def test_series_ends_early_where_the_rest_does_not_matter(monkeypatch):
    """A fresh block contracts so much that few terms count; the others are neither computed nor missed."""
    torch.manual_seed(6)
    block = ResidualBlock(2, 8, 4, activates_input=True).double()
    x, code = torch.randn(2, 2, 4, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    probes = torch.randn(1, 2, 2, 4, 4, dtype=torch.float64)
    branch, offset = block.branch(code)
    _, jacobian = branch.linearize(x, offset)
    n_products = 0
    product = type(jacobian).transposed_product

    def counted(self, u):
        nonlocal n_products
        n_products += 1
        return product(self, u)

    monkeypatch.setattr(type(jacobian), "transposed_product", counted)
    actual = series(jacobian, probes, 6, 2.0, BLOCK_LIPSCHITZ_CONSTANT, 10)
    assert 1 < n_products < 16
    expected, vector = torch.zeros(2, dtype=torch.float64), probes
    for k, weight in enumerate(roulette_weights(16, 10, 2.0)[1:], start=1):
        vector = product(jacobian, vector)
        expected += (-1) ** (k + 1) * weight / k * (vector * probes).flatten(2).sum(2)[0]
    torch.testing.assert_close(actual, expected, rtol=1e-14, atol=0)


@torch.no_grad()
def test_many_probes_average(flow, monkeypatch):
    x = torch.rand(3, 2, 8, 8)
    noise = noise_for(flow, 3, n_probes=4)
    monkeypatch.setattr(log_determinant, "_stencils_pay", lambda _jacobian, n_products: n_products > 40)
    z, many = flow.transform(x, torch.zeros(3, 6), noise, "series")
    singles = []
    for i in range(4):
        one = FlowNoise(noise.code, tuple(probes[i : i + 1] for probes in noise.probes), noise.counts)
        same_z, values = flow.transform(x, torch.zeros(3, 6), one, "series")
        torch.testing.assert_close(same_z, z)
        singles.append(values)
    torch.testing.assert_close(many, torch.stack(singles).mean(0), rtol=1e-4, atol=1e-4)
    assert torch.stack(singles).std(0).min() > 0.01


@torch.no_grad()
def test_series_and_exact_log_determinant_agree_over_the_flow(flow):
    flow.double()
    x, code = torch.rand(2, 2, 8, 8, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)
    noise = noise_for(flow, 2, torch.float64, n_probes=100)
    _, estimates = flow.transform(x, code, noise, "series")
    _, exact = flow.transform(x, code, noise, "exact")
    assert (estimates.sum(1) - exact.sum(1)).abs().max() <= 0.05 * exact.sum(1).abs().max() + 1.0
    assert (estimates != exact).all()


def test_everything_in_full_precision_under_autocast(flow):
    flow.train()
    x = torch.rand(4, 2, 8, 8)
    noise = noise_for(flow, 4)
    plain = flow(x, noise, "surrogate")
    with torch.autocast("cpu", torch.bfloat16):
        automatic = flow(x, noise, "surrogate")
        data = flow.inverse(plain.z, plain.code)
    assert torch.equal(automatic.z, plain.z)
    assert torch.equal(automatic.log_jacobian, plain.log_jacobian)
    assert (data - x).abs().max() <= 1e-5


def test_noise_of_a_sample_does_not_depend_on_its_batch(flow):
    shared = Noise(0, "counts", torch.zeros(1, dtype=torch.int64))
    all_of = draw_flow_noise(flow, Noise(0, "flow", torch.arange(5)), shared)
    shared = Noise(0, "counts", torch.zeros(1, dtype=torch.int64))
    some = draw_flow_noise(flow, Noise(0, "flow", torch.tensor([3, 1])), shared)
    assert some.counts == all_of.counts
    assert len(some.counts) == len(some.probes) == len(list(flow.blocks()))
    assert torch.equal(some.code, all_of.code[[3, 1]])
    for ours, theirs, shape in zip(some.probes, all_of.probes, flow.block_shapes, strict=True):
        assert ours.shape == (1, 2, *shape)
        assert torch.equal(ours, theirs[:, [3, 1]])


def test_poisson_numbers_and_their_tail():
    uniforms = torch.linspace(0, 1, 1001, dtype=torch.float64)[:-1] + 1e-9
    for rate in (0.5, 2.0, 7.0):
        expected = scipy.stats.poisson.ppf(uniforms.numpy(), rate).astype(int).tolist()
        assert poisson_counts(uniforms, [rate] * 1000) == expected
        for n in range(40):
            assert reach_probability(n, rate) == pytest.approx(scipy.stats.poisson.sf(n - 1, rate), rel=1e-12)
    assert poisson_counts(torch.tensor([1 - 2**-53], dtype=torch.float64), [2.0])[0] < 40


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 10, "n_blocks": (1, 1, 1)}, "multiple of 4 from 16 on"),
        ({"image_size": 8, "squeeze_first": True, "n_blocks": (1, 1)}, "after a squeeze"),
        ({"code_size": 7}, "code_size is 7"),
        ({"n_blocks": (4, 0)}, "n_blocks is"),
        ({"hidden_channels": 0}, "hidden_channels is 0"),
    ],
)
def test_settings_that_make_no_flow(settings, message):
    with pytest.raises(UsageError, match=message):
        FlowSettings(**{"image_channels": 1, "image_size": 32, **settings})


def test_grey_images_and_squeezed_images():
    torch.manual_seed(7)
    settings = FlowSettings(
        1,
        16,
        squeeze_first=True,
        n_blocks=(1, 1),
        hidden_channels=8,
        code_size=4,
        encoder_planes=(4,),
        encoder_out_planes=2,
        prior_hidden_size=4,
    )
    flow = with_large_jacobian(InvertibleFlow(settings)).eval()
    assert flow.block_shapes == [(4, 8, 8), (16, 4, 4)]
    x = torch.rand(2, 1, 16, 16)
    with torch.no_grad():
        output = flow(x, noise_for(flow, 2), "series")
    assert output.z.shape == x.shape
    assert (flow.inverse(output.z, output.code) - x).abs().max() <= 1e-5
