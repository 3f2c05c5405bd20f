"""The parts of INDM's flow: convolutions, residual blocks, log-determinant estimators, prior and posterior of codes."""

import functools

import numpy as np
import pytest
import torch

from models.residual_flow.batch_norm import on_one_rank
from models.residual_flow.branch import sine
from models.residual_flow.lipschitz import LipschitzConvolution
from models.residual_flow.log_determinant import roulette_weights
from models.residual_flow.posterior import posterior_log_density
from models.residual_flow.prior import ActNorm, AffineCoupling, InvertibleLinear, PriorFlow
from models.residual_flow.residual_block import ResidualBlock
from models.residual_flow.squeeze import squeeze, unsqueeze
from models.residual_flow.weight_normalized import WeightNormalizedLinear
from tests.golden import vectors
from tests.spelling import CodePosterior, InverseSettings, code_of

PUBLISHED = InverseSettings(published_behaviour=True)


@pytest.fixture(scope="module", params=["f32", "f64"])
def precision(request):
    return request.param


@pytest.fixture(scope="module")
def recorded():
    return vectors.load("indm", "flow_modules")


class Recorded:
    """One group of the file at one precision."""

    def __init__(self, arrays: dict[str, np.ndarray], group: str, precision: str) -> None:
        self.group = {k.removeprefix(f"{group}/"): v for k, v in arrays.items() if k.startswith(f"{group}/")}
        self.precision = precision
        self.dtype = torch.float64 if precision == "f64" else torch.float32

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = torch.from_numpy(self.group[name])
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def expected(self, name: str) -> np.ndarray:
        return self.group[f"{name}_{self.precision}"]

    def state_dict(self) -> dict[str, torch.Tensor]:
        prefix = "state_dict/"
        return {k.removeprefix(prefix): torch.from_numpy(v) for k, v in self.group.items() if k.startswith(prefix)}

    def load_into(self, module: torch.nn.Module) -> torch.nn.Module:
        module.load_state_dict(self.state_dict())
        return module.to(self.dtype).eval()

    def assert_near(
        self,
        actual: torch.Tensor,
        name: str,
        tolerance: float = 1e-8,
        tolerance_f32: float = 1e-4,
        terms: torch.Tensor | None = None,
    ) -> None:
        """Relative to the largest entry, or to what the absolute values of the terms of a sum add up to."""
        expected = self.expected(name)
        assert tuple(actual.shape) == expected.shape
        limit = tolerance if self.precision == "f64" else tolerance_f32
        difference = np.abs(actual.detach().double().numpy() - expected).max()
        scale = np.abs(expected).max() if terms is None else terms.detach().double().abs().sum().item()
        assert difference <= limit * max(scale, 1e-30)


@pytest.fixture
def group(recorded, precision):
    return functools.partial(Recorded, recorded, precision=precision)


def test_squeeze(recorded):
    x, y = torch.from_numpy(recorded["squeeze/x"]), torch.from_numpy(recorded["squeeze/y"])
    assert torch.equal(squeeze(x), y)
    assert torch.equal(unsqueeze(y), x)


def test_sine(group):
    data = group("sin")
    data.assert_near(sine(data["x"]), "y", tolerance_f32=1e-6)


@pytest.mark.parametrize("name", ["lip_conv3x3", "cond_lip_conv1x1"])
def test_lipschitz_convolution(group, name):
    data = group(name)
    out_channels, in_channels, size, _ = data["state_dict/weight"].shape
    code_size = data["h"].shape[1] if "h" in data.group else None
    layer = data.load_into(LipschitzConvolution(in_channels, out_channels, size, code_size))
    x = data["x"] + layer.condition(data["h"])[:, :, None, None] if code_size else data["x"]
    weight = layer.bounded_weight()
    data.assert_near(weight, "weight_normalised", tolerance_f32=1e-6)
    data.assert_near(torch.nn.functional.conv2d(x, weight, layer.bias, padding=size // 2), "y", tolerance_f32=1e-5)


def test_roulette_weights(recorded):
    n_tested = 0
    for key, expected in recorded.items():
        if key.startswith("roulette/weight_lambda"):
            rate, n_exact_terms = key.removeprefix("roulette/weight_lambda").split("_exact")
            k = recorded["roulette/k"]
            weights = np.array(roulette_weights(int(k.max()), int(n_exact_terms), float(rate)))[k]
            # The recorded probabilities are 1 minus a rounded sum near 1: that 1 is the scale of their error, of some
            # 1e-16 for each term of the sum. tests/models/test_residual_flow.py compares small ones with SciPy's.
            with np.errstate(divide="ignore"):
                np.testing.assert_allclose(1 / weights, 1 / expected, rtol=0, atol=1e-14)
            n_tested += 1
    assert n_tested > 0


def residual_block(data: Recorded) -> ResidualBlock:
    state = data.state_dict()
    activates_input = "nnet.1.weight" in state
    first = state[f"nnet.{int(activates_input)}.weight"]
    code_size = next(value.shape[1] for key, value in state.items() if key.endswith("h_net.net.weight"))
    return data.load_into(ResidualBlock(first.shape[1], first.shape[0], code_size, activates_input))


BLOCKS = pytest.mark.parametrize("name", ["iresblock_first", "iresblock"])


@BLOCKS
def test_block_output_and_exact_log_determinant(group, name):
    data = group(name)
    block = residual_block(data)
    probes = data["vareps"][None]
    y, exact = block(data["x"], data["h"], probes, 0, "exact")
    data.assert_near(y, "y")
    data.assert_near(exact, "logdet_exact")


@BLOCKS
def test_block_jacobian(group, name):
    """By products with every unit vector, directly and by each pixel's own matrix."""
    data = group(name)
    block = residual_block(data)
    x = data["x"]
    branch, offset = block.branch(data["h"])
    _, jacobian = branch.linearize(x, offset)
    n_values = x[0].numel()
    basis = torch.eye(n_values, dtype=x.dtype).view(n_values, 1, *x.shape[1:]).expand(-1, len(x), -1, -1, -1)
    for linear_map in (jacobian, jacobian.stencils()):
        data.assert_near(linear_map.transposed_product(basis).flatten(2).transpose(0, 1), "jac_g")


@BLOCKS
def test_block_series(group, name):
    data = group(name)
    block = residual_block(data)
    probes = data["vareps"][None]
    values = [block(data["x"], data["h"], probes, n, "series")[1] for n in data["n_poisson"].tolist()]
    data.assert_near(torch.stack(values), "logdet_eval")


@BLOCKS
def test_block_surrogate_and_its_gradient(group, name):
    data = group(name)
    block = residual_block(data)
    probes = data["vareps"][None]
    (weight,) = (p for key, p in block.named_parameters() if key.endswith("h_net.net.weight"))
    values, gradients = [], []
    for n in data["n_poisson"].tolist():
        _, value = block(data["x"], data["h"], probes, n, "surrogate")
        gradients += torch.autograd.grad(value.sum(), weight)
        values.append(value)
    data.assert_near(torch.stack(values), "logdet_train")
    data.assert_near(torch.stack(gradients), "train_grad_hnet_weight")


@BLOCKS
def test_block_inverse(group, name):
    data = group(name)
    block = residual_block(data)
    y = torch.from_numpy(data.expected("y"))
    x, iterations = block.inverse(y, data["h"], PUBLISHED)
    data.assert_near(x, "inverse")
    assert iterations.tolist() == [int(data["inverse_iters"])] * len(y)
    ours, _ = block.inverse(y, data["h"], InverseSettings(tolerance=1e-10 if data.precision == "f64" else 1e-5))
    assert (ours - data["x"]).abs().max() <= (1e-9 if data.precision == "f64" else 2e-5)


def test_act_norm(group):
    data = group("actnorm1d")
    layer = data.load_into(ActNorm(data["x"].shape[1]))
    y, log_determinant = layer(data["x"])
    data.assert_near(y, "y")
    data.assert_near(log_determinant[:1], "logdet", terms=layer.log_scale, tolerance_f32=1e-5)
    data.assert_near(code_of(layer, torch.from_numpy(data.expected("y")), published_behaviour=True), "backward_x")


def test_invertible_linear(group):
    data = group("invertible_linear")
    layer = data.load_into(InvertibleLinear(data["x"].shape[1]))
    y, log_determinant = layer(data["x"])
    data.assert_near(y, "y")
    weight = layer.weight.double()
    # What ln|det W| moves by, to first order, when an entry of W moves by its own size.
    data.assert_near(log_determinant[0], "logdet", terms=torch.linalg.inv(weight).T * weight, tolerance_f32=1e-5)
    data.assert_near(code_of(layer, data["x"], published_behaviour=True), "stale_backward_of_x")
    data.assert_near(layer.inverse(data["x"]), "synced_backward_of_x")


def test_weight_normalized_linear(group):
    data = group("linear_weightnorm")
    out_features, in_features = data["state_dict/linear.weight_v"].shape
    data.assert_near(data.load_into(WeightNormalizedLinear(in_features, out_features))(data["x"]), "y")


@pytest.mark.parametrize("split", ["continuous", "skip"])
@pytest.mark.parametrize("direction", ["down", "up"])
def test_coupling(recorded, precision, split, direction):
    data = Recorded(recorded, f"coupling/{split}_{direction}", precision)
    x = torch.from_numpy(recorded["coupling/x"]).to(data.dtype)
    hidden_size = data["state_dict/net.fc1.bias"].shape[0]
    layer = data.load_into(AffineCoupling(x.shape[1], hidden_size, split, 1 if direction == "up" else 0))
    y, log_determinant = layer(x)
    data.assert_near(y, "y")
    data.assert_near(log_determinant, "logdet")
    back = code_of(layer, torch.from_numpy(data.expected("y")), published_behaviour=True)
    data.assert_near(back, "backward_x")
    data.assert_near(-layer(back)[1], "backward_logdet")


def prior_size(state: dict[str, torch.Tensor]) -> tuple[int, int, int]:
    """Entries, hidden width and steps of the prior flow in a state_dict."""
    prefix = next(name for name in state if name.endswith("flow.steps.0.actnorm.bias"))
    prefix = prefix.removesuffix("0.actnorm.bias")
    n_steps = 1 + max(int(name.removeprefix(prefix).split(".")[0]) for name in state if name.startswith(prefix))
    return len(state[f"{prefix}0.actnorm.bias"]), len(state[f"{prefix}0.unit.coupling1_up.net.fc1.bias"]), n_steps


def test_prior_flow(group):
    data = group("prior_flow")
    prior = data.load_into(PriorFlow(*prior_size(data.state_dict())))
    z = data["z"].flatten(0, 1)
    normal, log_determinant = prior(z)
    data.assert_near(normal[:, None], "base_eps")
    data.assert_near(log_determinant, "logdet")
    data.assert_near(prior.log_density(z)[:, None], "log_prob")
    assert (prior.inverse(normal) - z).abs().max() <= (1e-12 if data.precision == "f64" else 1e-5)


def test_prior_flow_kl(group):
    data = group("prior_flow")
    prior = data.load_into(PriorFlow(*prior_size(data.state_dict())))
    normal = data["eps_post"].flatten(0, 1)
    code = data["mu"] + (data["logvar"] / 2).exp() * normal
    data.assert_near(posterior_log_density(data["logvar"], normal) - prior.log_density(code), "kl")


def test_prior_flow_samples(group):
    data = group("prior_flow")
    prior = data.load_into(PriorFlow(*prior_size(data.state_dict())))
    data.assert_near(code_of(prior, data["eps_sample"], published_behaviour=True), "sample_stale")
    # The public code divides by scales + 1e-8 and + 1e-12 here too; ours does not.
    data.assert_near(prior.inverse(data["eps_sample"]), "sample_synced", tolerance=1e-6)
    for step in prior.flow["steps"]:
        step["linear"].weight_inv.copy_(torch.linalg.inv(step["linear"].weight.detach()))
    data.assert_near(code_of(prior, data["eps_sample"], published_behaviour=True), "sample_synced")


def code_posterior(data: Recorded) -> CodePosterior:
    state = data.state_dict()
    code_size, hidden_size, n_steps = prior_size(state)
    n_levels = 1 + max(int(k.split(".")[2].removeprefix("resnet")) for k in state if k.startswith("encoder.net.resnet"))
    posterior = CodePosterior(
        data["x"].shape[1],
        data["x"].shape[2],
        encoder_planes=tuple(len(state[f"encoder.net.resnet{i}.main.0.bn1.bias"]) for i in range(n_levels)),
        encoder_out_planes=len(state["encoder.net.top.bias"]),
        code_size=code_size,
        prior_hidden_size=hidden_size,
        n_prior_steps=n_steps,
        sum_over_ranks=on_one_rank,
    )
    return data.load_into(posterior)


def test_posterior_in_evaluation(group):
    data = group("posterior")
    posterior = code_posterior(data)
    data.assert_near(posterior.encoder(data["x"]), "eval/features")
    for actual, name in zip(posterior.moments(data["x"]), ("mu", "logvar"), strict=True):
        data.assert_near(actual, f"eval/{name}")
    code, kl = posterior(data["x"], data["eps"].flatten(0, 1))
    data.assert_near(code[:, None], "eval/h")
    data.assert_near(kl, "eval/kl")


def test_posterior_in_training(group):
    data = group("posterior")
    posterior = code_posterior(data).train()
    code, kl = posterior(data["x"], data["eps"].flatten(0, 1))
    data.assert_near(code[:, None], "train/h")
    data.assert_near(kl, "train/kl")
    first = posterior.encoder.net["resnet0"]["main"][0].bn1
    data.assert_near(first.running_mean, "train/running_mean_after_bn1_of_first_block")
    data.assert_near(first.running_var, "train/running_var_after_bn1_of_first_block")
    assert first.num_batches_tracked == data["state_dict/encoder.net.resnet0.main.0.bn1.num_batches_tracked"] + 1
