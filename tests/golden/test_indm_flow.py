"""INDM's whole flow: latents, likelihood terms, inverse, samples, training gradient; names of published checkpoints."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from models.residual_flow import FlowNoise, FlowSettings, InvertibleFlow
from tests.golden import vectors
from tests.golden.indm_setup import tiny_flow
from tests.spelling import InverseSettings, sample_code


@pytest.fixture(scope="module", params=["f32", "f64"])
def precision(request):
    return request.param


@pytest.fixture(scope="module")
def recorded():
    return vectors.load("indm", "flow_tiny")


@pytest.fixture
def dtype(precision):
    return torch.float64 if precision == "f64" else torch.float32


@pytest.fixture
def assert_near(recorded, precision):
    def check(actual: torch.Tensor, name: str, tolerance: float = 1e-8, tolerance_f32: float = 1e-4) -> None:
        expected = recorded[f"{name}_{precision}"]
        assert tuple(actual.shape) == expected.shape
        difference = np.abs(actual.detach().double().numpy() - expected).max()
        assert difference <= (tolerance if precision == "f64" else tolerance_f32) * np.abs(expected).max()

    return check


@pytest.fixture
def flow(recorded, dtype):
    return tiny_flow(recorded, dtype).eval()


@pytest.fixture
def tensor(recorded, dtype):
    return lambda name: torch.from_numpy(recorded[name]).to(dtype)


@pytest.fixture
def noise_of(recorded, tensor):
    def read(group: str) -> FlowNoise:
        blocks = sorted({k.split("/")[2] for k in recorded if k.startswith(f"{group}/noise/block")})
        return FlowNoise(
            code=tensor(f"{group}/noise/h_eps").flatten(0, 1),
            probes=tuple(tensor(f"{group}/noise/{block}/vareps")[None] for block in blocks),
            counts=tuple(int(recorded[f"{group}/noise/{block}/n_poisson"].item()) for block in blocks),
        )

    return read


@pytest.mark.parametrize("gradients", [False, True])
def test_series(flow, tensor, noise_of, assert_near, gradients):
    with torch.set_grad_enabled(gradients):
        output = flow(tensor("in/x"), noise_of("eval"), "series")
    assert_near(output.z, "eval/z")
    assert_near(output.code, "eval/h")
    assert_near(output.kl, "eval/kl")
    assert_near(output.log_determinants, "eval/logdet_est_per_block")
    assert_near(output.log_determinants.sum(1), "eval/logdet_est")
    assert_near(output.log_jacobian, "eval/log_jacob")


def test_exact_log_determinant(flow, tensor, noise_of, assert_near):
    with torch.no_grad():
        output = flow(tensor("in/x"), noise_of("eval"), "exact")
    assert_near(output.log_determinants.sum(1), "eval/logdet_exact")


def test_jacobian_by_automatic_differentiation(flow, recorded, precision, tensor, noise_of, assert_near):
    x, noise = tensor("in/x"), noise_of("eval")
    code = torch.from_numpy(recorded[f"eval/h_{precision}"])

    def latents(data: torch.Tensor) -> torch.Tensor:
        return flow.transform(data, code, noise, "none")[0]

    _, product = torch.autograd.functional.jvp(latents, x, torch.ones_like(x))
    assert_near(product, "eval/jac_times_ones")


def test_fixed_code(flow, recorded, precision, tensor, noise_of, assert_near):
    code = tensor("fixed_h/h")
    z, _ = flow.transform(tensor("in/x"), code, noise_of("eval"), "none")
    assert_near(z, "fixed_h/z")
    recorded_z = torch.from_numpy(recorded[f"fixed_h/z_{precision}"])
    x, iterations = flow.inverse_with_iterations(recorded_z, code, InverseSettings(published_behaviour=True))
    assert_near(x, "fixed_h/x_reconstructed")
    assert iterations[0].flip(0).tolist() == recorded["fixed_h/inverse_iters"].tolist()
    ours = flow.inverse(recorded_z, code)
    # What the public rule leaves, 3e-3 for each block, is far above this.
    assert (ours - tensor("in/x")).abs().max() <= 1e-5 * (1 + recorded_z.abs().max())


def test_generation_as_published(flow, tensor, assert_near):
    code = sample_code(flow, tensor("gen/h_eps"), published_behaviour=True)
    assert_near(code, "gen/h_stale")
    assert_near(flow.inverse(tensor("gen/z"), code, InverseSettings(published_behaviour=True)), "gen/x_stale")


def test_generation(flow, tensor, assert_near):
    code = flow.sample_code(tensor("gen/h_eps"))
    # The public code divides by scales + 1e-8 and + 1e-12.
    assert_near(code, "gen/h_synced", tolerance=1e-6)
    for step in flow.discriminator.prior.flow["steps"]:
        step["linear"].weight_inv.copy_(torch.linalg.inv(step["linear"].weight.detach()))
    code = sample_code(flow, tensor("gen/h_eps"), published_behaviour=True)
    assert_near(code, "gen/h_synced")
    assert_near(flow.inverse(tensor("gen/z"), code, InverseSettings(published_behaviour=True)), "gen/x_synced")
    # The public rule stops some 3e-3 from the fixed point of each block.
    assert_near(flow.inverse(tensor("gen/z"), code), "gen/x_synced", tolerance=0.02, tolerance_f32=0.02)


def test_training_pass_and_gradient(flow, recorded, precision, tensor, noise_of, assert_near):
    flow.train()
    output = flow(tensor("in/x"), noise_of("train"), "surrogate")
    assert_near(output.z, "train/z")
    assert_near(output.code, "train/h")
    assert_near(output.kl, "train/kl")
    assert_near(output.log_determinants, "train/surrogate_per_block")
    assert_near(output.log_jacobian, "train/log_jacob_surrogate")

    (-output.log_jacobian.mean()).backward()
    gradients = {name: p.grad for name, p in flow.named_parameters() if p.grad is not None}
    n_without = len(list(flow.parameters())) - len(gradients)
    # The last output bias gets exact zeros here, which is no tensor at all in the public code.
    last_bias = max(name for name in gradients if name.endswith("bias") and ".nnet." in name and "h_net" not in name)
    assert gradients[last_bias].count_nonzero() == 0
    assert n_without + 1 == int(recorded["train/num_params_without_grad"])
    norm = torch.stack([gradient.double().square().sum() for gradient in gradients.values()]).sum().sqrt()
    assert_near(norm, "train/grad_norm_of_minus_mean_log_jacob")
    names = [key for key in recorded if key.startswith("train/grad/") and key.endswith(precision)]
    assert names
    for key in names:
        name = key.removesuffix(f"_{precision}")
        assert_near(gradients[name.removeprefix("train/grad/")], name)
    for index, block in enumerate(flow.blocks()):
        surrogates = recorded[f"train/surrogate_per_block_{precision}"][:, index]
        assert block.last_n_samples == recorded[f"train/noise/block{index:02d}/n_poisson"]
        np.testing.assert_allclose(block.last_firmom.item(), surrogates.mean(dtype=float), rtol=1e-4)
        np.testing.assert_allclose(block.last_secmom.item(), (surrogates.astype(float) ** 2).mean(), rtol=1e-4)


@pytest.fixture(scope="module")
def published_names():
    folder = Path(os.environ.get("GOLDEN_DIR") or Path(__file__).parent / "vectors")
    lines = (folder / "indm" / "flow_cifar10_state_dict.txt").read_text().splitlines()
    return [line.split(maxsplit=2) for line in lines if not line.startswith("#")]


def test_published_names_order_and_shapes(published_names):
    with torch.device("meta"):
        flow = InvertibleFlow(FlowSettings(image_channels=3, image_size=32))
    parameters = dict(flow.named_parameters())
    ours = [
        [
            "P" if name in parameters else "B",
            name,
            f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}",
        ]
        for name, value in flow.state_dict().items()
    ]
    assert ours == published_names
    assert [name for kind, name, _ in published_names if kind == "P"] == list(parameters)
    assert all(parameter.requires_grad for parameter in parameters.values())


@pytest.mark.parametrize(
    ("settings", "total", "blocks", "encoder"),
    [
        (FlowSettings(3, 32), 13_164_376, (324_101, 407_054), 714_536),
        (FlowSettings(3, 64, squeeze_first=True), 19_804_936, (407_054, 738_866), 718_856),
    ],
    ids=["CIFAR-10", "CelebA"],
)
def test_published_sizes(settings, total, blocks, encoder):
    def size(module: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    with torch.device("meta"):
        flow = InvertibleFlow(settings)
    assert size(flow) == total
    assert [{size(block) for block in scale["chain"]} for scale in flow.generator["flow"]["transforms"]] == [
        {number} for number in blocks
    ]
    assert size(flow.discriminator.encoder) == encoder
    assert size(flow.discriminator.fc) == 16_640
    assert size(flow.discriminator.prior) == 734_720
