"""INDM: the likelihood of a model whose answer is known; steps and evaluations that depend on the samples alone."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from diffusion.continuous.gaussian import GaussianData
from main import parse_config
from models.ncsnpp import NCSNpp
from models.residual_flow import FlowOutput, InvertibleFlow
from tests.evaluators.ranks import run_ranks
from tests.trainers.steps import take_step
from trainers.indm.method import JointDiffusion, check_indm, flow_settings
from trainers.networks import score_network_settings
from util.config import Config
from util.data.dataset import open_dataset
from util.data.loader import MicroBatch
from util.distributed import Distributed
from util.errors import UsageError
from util.noise import Noise

CONFIGS = Path(__file__).parents[2] / "configs" / "smoke"
SMALL = [
    "--n_channels", "8", "--flow_blocks", "1,1", "--flow_channels", "8", "--code_size", "4", "--encoder_planes", "4",
    "--code_prior_channels", "8", "--total_batch_size", "8", "--n_warmup_iters", "0",
]  # fmt: skip


def make_config(*flags: str, kind: str = "vp_nll") -> Config:
    return parse_config(["-cc", str(CONFIGS / f"indm_{kind}.txt"), *SMALL, *flags])


def batch(first: int, last: int, step: int = 0) -> MicroBatch:
    """Samples ``first`` to ``last`` of the step's eight."""
    positions = torch.arange(8 * step + first, 8 * step + last)
    levels = torch.linspace(0, 255, 64).reshape(1, 1, 8, 8) + 16 * positions.reshape(-1, 1, 1, 1)
    return MicroBatch((levels % 256).to(torch.uint8), positions)


class LinearFlow(nn.Module):
    """z = A x with the interface of the flow; the code says nothing."""

    code_size = 1
    block_shapes = ((1, 1, 1),)
    poisson_rates = (2.0,)

    def __init__(self, matrix: torch.Tensor) -> None:
        super().__init__()
        self.matrix = matrix

    def forward(self, x, noise, log_determinant):  # noqa: ARG002
        z = (x.flatten(1).double() @ self.matrix.T).reshape(x.shape)
        zeros = torch.zeros(len(x), dtype=torch.float64)
        return FlowOutput(z, noise.code, zeros, (zeros + torch.linalg.slogdet(self.matrix).logabsdet)[:, None])


@pytest.mark.parametrize("kind", ["vp_nll", "ve_fid"])
def test_linear_flow_of_gaussian_data_has_their_entropy(kind):
    method = JointDiffusion(make_config(kind=kind), Distributed())
    n_samples, n_with_ode, n_dimensions = 2000, 150, 64
    generator = torch.Generator().manual_seed(0)
    matrix, factor = (
        1.5 * torch.eye(n_dimensions, dtype=torch.float64)
        + torch.randn(n_dimensions, n_dimensions, generator=generator, dtype=torch.float64) / 16
        for _ in range(2)
    )
    data = GaussianData(torch.zeros(n_dimensions, dtype=torch.float64), factor @ factor.T)
    latent = GaussianData(data.mean, matrix @ data.covariance @ matrix.T)
    if kind == "ve_fid":
        # What a network learns of this process are latents with the noise of sigma_min.
        spread = method.process.sigma_min**2 * torch.eye(n_dimensions, dtype=torch.float64)
        latent = GaussianData(latent.mean, latent.covariance + spread)
    score = latent.score(method.process)
    method.flow = LinearFlow(matrix)
    exact = lambda z, t: score(z.flatten(1).double(), t).reshape(z.shape)  # noqa: E731
    method._score = replace(method._score, exact=exact)
    method._to_data = lambda x, noise: x
    x = data.sample(torch.randn(n_samples, n_dimensions, generator=generator)).reshape(-1, *method.data_shape)
    entropy = data.entropy / (n_dimensions * math.log(2)) + method.scale.offset
    for name, likelihood in method.likelihoods.items():
        n = n_samples if name.startswith("nelbo") else n_with_ode
        found = likelihood(x[:n], Noise(0, name, torch.arange(n)))
        torch.testing.assert_close(torch.stack(list(found.terms.values())).sum(0), found.value)
        error = found.value.std().item() / math.sqrt(n)
        print(f"{kind} {name}: {found.value.mean():.4f} +- {error:.4f}, entropy {entropy:.4f} bits/dim")
        assert abs(found.value.mean() - entropy) < 3 * error + 1e-3
        # The log-determinant alone is far larger than that.
        assert abs(found.terms["log_determinant"]).mean() > 6 * error + 0.1
        inner = {"log_determinant", "code", "scaling"}
        torch.testing.assert_close(
            found.apart["latent"], sum(term for key, term in found.terms.items() if key not in inner)
        )


def weights_after_two_steps(distributed: Distributed, *flags: str) -> dict[str, torch.Tensor]:
    torch.set_num_threads(1)
    method = JointDiffusion(make_config(*flags), distributed)
    share = 8 // distributed.world_size
    first = share * distributed.rank
    for step in range(2):
        take_step(method, [batch(first, first + share, step)])
    return {
        f"{name}.{key}": tensor
        for name, network in method.state.networks.items()
        for key, tensor in network.state_dict().items()
    }


def test_two_ranks_do_what_one_does(tmp_path):
    (alone,) = run_ranks(1, tmp_path, weights_after_two_steps, "--step_function", "fid", "--soft_truncation")
    together = run_ranks(2, tmp_path, weights_after_two_steps, "--step_function", "fid", "--soft_truncation")
    assert isinstance(alone, dict), alone
    for weights in together:
        assert isinstance(weights, dict), weights
        for key, tensor in alone.items():
            # An update is of the size of the learning rate wherever a gradient is rounding.
            torch.testing.assert_close(weights[key], tensor, rtol=1e-4, atol=5e-4, msg=lambda text, key=key: key + text)
        close = [torch.isclose(weights[key], alone[key], rtol=1e-4, atol=1e-6).flatten() for key in alone]
        assert torch.cat(close).float().mean() > 0.98


def test_a_loaded_state_goes_on_bit_for_bit():
    method, resumed = (JointDiffusion(make_config(), Distributed()) for _ in range(2))
    take_step(method, [batch(0, 8)])
    take_step(resumed, [batch(0, 8, 5)])
    resumed.state.load_state_dict(copy.deepcopy(method.state.state_dict()), "test")
    torch.manual_seed(1)
    first = take_step(method, [batch(0, 8, 1)])
    torch.manual_seed(1)
    second = take_step(resumed, [batch(0, 8, 1)])
    for name in first:
        assert torch.equal(first[name], second[name]), name
    for name, network in method.state.networks.items():
        for key, tensor in network.state_dict().items():
            assert torch.equal(tensor, resumed.state.networks[name].state_dict()[key]), key


def test_micro_batches_are_averaged_and_added_up_as_published():
    halves = [batch(0, 4), batch(4, 8)]
    ours, published = (
        take_step(JointDiffusion(make_config("--published_behaviour", flag), Distributed()), halves)
        for flag in ("false", "true")
    )
    torch.testing.assert_close(published["loss"], 2 * ours["loss"])
    torch.testing.assert_close(published["gradient_norm_flow"], 2 * ours["gradient_norm_flow"], rtol=1e-4, atol=0)
    torch.testing.assert_close(published["loss"], sum(published[f"loss_{name}"] for name in ("score", "flow", "prior")),
                               check_dtype=False)  # fmt: skip


def test_what_is_evaluated_depends_on_nothing_but_the_sample():
    method = JointDiffusion(make_config("--n_discrete_steps", "4", "--data_mean", kind="ve_fid"), Distributed())
    method._data_mean = (0, torch.full(method.data_shape, 0.5, dtype=torch.float64))
    every, some = torch.arange(6), torch.tensor([4, 1])
    images = batch(0, 6).data
    for evaluate in (
        lambda indices: method.nelbo(images[indices], Noise(0, "evaluate", indices), with_residual=True).value,
        lambda indices: method.validation_loss(images[indices], Noise(0, "evaluate", indices)),
        lambda indices: method.sample(Noise(0, "sample", indices)).data,
    ):
        torch.testing.assert_close(evaluate(every)[some], evaluate(some), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["vp_nll", "ve_fid"])
def test_a_trajectory_ends_with_the_sample(kind):
    method = JointDiffusion(make_config("--n_discrete_steps", "20", kind=kind), Distributed())
    indices = torch.arange(2)
    shown = method.trajectory(Noise(0, "sample", indices))
    assert shown["data"].shape == shown["latent"].shape
    assert shown["data"].shape[0] == 2
    sample = method.sample(Noise(0, "sample", indices)).data
    torch.testing.assert_close(shown["data"][:, -1], sample, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("published", "n_read", "divisor"), [("false", 3, 3), ("true", 128, 3)])
def test_sampling_starts_around_the_mean_of_the_latents(published, n_read, divisor):
    flags = ("--data_mean", "--data_mean_items", "3", "--published_behaviour", published)
    method = JointDiffusion(make_config(*flags, kind="ve_fid"), Distributed())
    method.flow = LinearFlow(2 * torch.eye(64, dtype=torch.float64))
    digits = open_dataset("digits", "train", "", 8, 1, 0).read(np.arange(n_read))
    mean = 2 * (digits.double() + 0.5).sum(0) / 256 / divisor
    # What is added in dequantization is not its mean, but small.
    torch.testing.assert_close(method._mean_of_latents(), mean, rtol=0, atol=2 * n_read / divisor / 256)


def test_evaluation_has_the_averages_of_both_networks():
    indices = torch.arange(4)
    values = {}
    for published in ("false", "true"):
        method = JointDiffusion(make_config("--published_behaviour", published), Distributed())
        with torch.no_grad():
            for shadow in method.flow_updater.ema.shadow.values():
                shadow.add_(0.1)
        noise = Noise(0, "evaluate", indices)
        values[published] = method.nelbo(batch(0, 4).data, noise).terms["log_determinant"]
    assert not torch.allclose(values["true"], values["false"])
    unchanged = JointDiffusion(make_config(), Distributed())
    noise = Noise(0, "evaluate", indices)
    torch.testing.assert_close(values["true"], unchanged.nelbo(batch(0, 4).data, noise).terms["log_determinant"])


def test_the_ratio_of_the_langevin_steps_follows_its_schedule():
    flags = ["--n_discrete_steps", "4", "--snr", "0.2", "--end_snr", "0.1"]
    method = JointDiffusion(make_config(*flags, kind="ve_fid"), Distributed())
    assert method._snrs() == pytest.approx([0.2, 0.175, 0.15, 0.125])
    method = JointDiffusion(make_config(*flags, "--snr_scheduling", "none", kind="ve_fid"), Distributed())
    assert method._snrs() == [0.2] * 4


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--sde", "subvpsde"], "--sde subvpsde"),
        (["--mixed_score", "true"], "mixed_score"),
        (["--weighting", "reweightedv2"], "--importance_sampling"),
        (["--sampling_method", "em"], "--sampling_method em"),
        (["--pc_denoise"], "--pc_denoise"),
        (["--flow_blocks", "1,1,1"], "flow"),
    ],
)
def test_options_that_contradict_each_other(flags, named):
    with pytest.raises(UsageError, match=named) as raised:
        check_indm(make_config(*flags))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("path", sorted((CONFIGS.parent / "indm").glob("*.txt")), ids=lambda path: path.stem)
def test_published_settings(path):
    check_indm(parse_config(["-cc", str(path)]))


@pytest.mark.parametrize(
    ("name", "n_resblocks", "n_of_the_score", "n_of_the_flow"),
    [("cifar10_ve_fid", "4", 62_758_915, 13_164_376), ("celeba64_vp_nll", "8", 106_632_579, 19_804_936)],
)
def test_published_sizes(name, n_resblocks, n_of_the_score, n_of_the_flow):
    config = parse_config(["-cc", str(CONFIGS.parent / "indm" / f"{name}.txt"), "--n_resblocks", n_resblocks])
    with torch.device("meta"):
        networks = NCSNpp(score_network_settings(config, 3, 3)), InvertibleFlow(flow_settings(config))
    sizes = [sum(parameter.numel() for parameter in network.parameters()) for network in networks]
    assert sizes == [n_of_the_score, n_of_the_flow]
