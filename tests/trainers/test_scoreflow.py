"""The scoreflow system: one step whatever its micro-batches, likelihoods, samples, checks, published settings."""

from pathlib import Path

import pytest
import torch

from main import parse_config
from models.ncsnpp import NCSNpp
from tests.configuration import configured
from tests.trainers.steps import take_step
from trainers.networks import score_network_settings
from trainers.scoreflow.method import ScoreFlow, check_scoreflow
from trainers.scoreflow.options import ScoreFlowOptions
from util.config import Config
from util.data.loader import MicroBatch
from util.distributed import Distributed
from util.errors import UsageError
from util.noise import Noise

N_SAMPLES = 8
CONFIGS = Path(__file__).parents[2] / "configs" / "scoreflow"
SWITCHES = ("likelihood_weighting", "importance_sampling")


def make_config(**options) -> Config:
    """A small network on 4 x 4 images; options by their flags."""
    settings = {
        "system": "scoreflow", "sde": "vpsde", "beta0": 0.1, "beta1": 19.9, "image_size": 4, "image_channels": 1,
        "n_channels": 8, "ch_mult": [1, 2], "n_resblocks": 1, "attn_resolutions": [2], "use_fir": False,
        "progressive_input": "none", "embedding_type": "positional", "dropout": 0.0, "mixed_score": False,
        "grad_clip": 0.0, "total_batch_size": N_SAMPLES, "loss_eps": 1e-3, "likelihood_eps": 1e-3,
        "likelihood_solver": "rk4", "likelihood_n_steps": 4, "sampling_solver": "rk4", "sampling_n_steps": 4,
        "bound_n_times": 4, "n_discrete_steps": 22, **options,
    }  # fmt: skip
    config = configured(**settings)
    check_scoreflow(config)
    return config


def make_method(**options) -> ScoreFlow:
    method = ScoreFlow(make_config(**options), Distributed())
    # The last layers begin at almost zero.
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in method.network.named_parameters():
            parameter += 0.03 * torch.randn(parameter.shape, generator=generator)
            method.updater.ema.shadow[name].copy_(parameter)
    return method


def images() -> torch.Tensor:
    levels = torch.randint(256, (N_SAMPLES, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    return levels.to(torch.uint8)


def noise(indices=range(N_SAMPLES)) -> Noise:
    return Noise(0, "test", torch.tensor(list(indices)))


LIKELIHOOD = {"weighting": "likelihood", "importance_sampling": True}


@pytest.mark.parametrize("options", [{}, LIKELIHOOD, {"sde": "subvpsde", **LIKELIHOOD}, {"sde": "vesde"}])
def test_a_step_does_not_depend_on_its_micro_batches(options):
    methods = [make_method(**options) for _ in range(2)]
    for method, n_pieces in zip(methods, (1, 4), strict=True):
        pieces = zip(images().chunk(n_pieces), torch.arange(N_SAMPLES).chunk(n_pieces), strict=True)
        metrics = take_step(method, [MicroBatch(data, positions) for data, positions in pieces])
        assert all(value.isfinite().all() for value in metrics.values())
        assert method.state.step == 1
    for whole, cut in zip(*(method.network.parameters() for method in methods), strict=True):
        torch.testing.assert_close(whole.grad, cut.grad, rtol=1e-4, atol=1e-5 * whole.grad.abs().max().item() + 1e-6)


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("sde", ["vpsde", "subvpsde", "vesde"])
def test_the_terms_of_a_likelihood_add_up_to_it(sde, published):
    method = make_method(sde=sde, published_behaviour=published, center_image=sde != "vesde")
    assert list(method.likelihoods) == ["nelbo", "negative_log_likelihood"]
    for likelihood_of in method.likelihoods.values():
        likelihood = likelihood_of(images(), noise())
        assert likelihood.value.shape == (N_SAMPLES,)
        assert likelihood.value.isfinite().all()
        torch.testing.assert_close(sum(likelihood.terms.values()), likelihood.value)
        assert torch.equal(likelihood.terms["dequantization"], torch.zeros(N_SAMPLES, dtype=torch.float64))
        assert likelihood.terms["scaling"][0] == (8 if sde == "vesde" else 7)


def test_noise_that_dequantizes_counts_by_its_density():
    """Twice the density of uniform noise costs one bit in each dimension."""
    method = make_method()
    uniform = method.dequantize

    def dense(batch, draws):
        x, minus_log_density = uniform(batch, draws)
        return x, minus_log_density - batch[0].numel() * torch.tensor(2.0, dtype=torch.float64).log()

    before = [likelihood_of(images(), noise()).value for likelihood_of in method.likelihoods.values()]
    method.dequantize = dense
    after = [likelihood_of(images(), noise()).value for likelihood_of in method.likelihoods.values()]
    for first, second in zip(before, after, strict=True):
        torch.testing.assert_close(second, first + 1)


@pytest.mark.parametrize("sde", ["vpsde", "subvpsde", "vesde"])
@pytest.mark.parametrize("sampling_method", ["pc", "ode"])
def test_sampling(sde, sampling_method):
    method = make_method(sde=sde, sampling_method=sampling_method, center_image=sde != "vesde")
    together = method.sample(noise())
    assert together.data.shape == (N_SAMPLES, 1, 4, 4)
    assert together.data.dtype == torch.float32
    assert ((together.data >= 0) & (together.data <= 1)).all()
    if sampling_method == "pc":
        assert together.n_evaluations == 44
        alone = method.sample(noise([3]))
        torch.testing.assert_close(alone.data[0], together.data[3], rtol=0, atol=1e-4)


def test_averages_follow_their_decay_from_the_first_step():
    method = make_method(ema_rate=0.9)
    before = {name: values.clone() for name, values in method.updater.ema.shadow.items()}
    take_step(method, [MicroBatch(images(), torch.arange(N_SAMPLES))])
    for name, parameter in method.network.named_parameters():
        expected = 0.9 * before[name] + 0.1 * parameter.detach()
        torch.testing.assert_close(method.updater.ema.shadow[name], expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sde": "cld"}, "--sde cld"),
        ({"is_image": False}, "is for images"),
        ({"mixed_score": True}, "only false"),
        ({"weighting": "reweightedv1"}, "reweightedv1"),
        ({"importance_sampling": True}, "needs --weighting likelihood"),
        ({"sde": "vesde", **LIKELIHOOD}, "same at all times"),
        ({"sde": "vesde", "sigma_max": 0.001}, "sigma_min < sigma_max"),
        ({"sampling_method": "sscs"}, "one of ode, pc"),
        ({"sampling_method": "pc", "n_discrete_steps": 20}, "at least 21"),
        ({"sampling_method": "pc", "predictor": "none", "corrector": "none"}, "nothing would be sampled"),
        ({"name": "mlp"}, "--name mlp"),
    ],
)
def test_contradicting_options_are_usage_errors(options, message):
    with pytest.raises(UsageError, match=message) as caught:
        make_config(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*vp.txt")), ids=lambda path: path.stem)
def test_published_settings(path):
    for switch in (None, *SWITCHES):
        special = [] if switch is None else ["-sc", str(CONFIGS / f"{switch}.txt")]
        config = parse_config(["-cc", str(path), *special])
        check_scoreflow(config)
        assert config[ScoreFlowOptions].weighting == ("reweightedv2" if switch is None else "likelihood")
        assert config[ScoreFlowOptions].importance_sampling == (switch == "importance_sampling")
    assert config[ScoreFlowOptions].sde == ("subvpsde" if "subvp" in path.stem else "vpsde")
    with torch.device("meta"):
        network = NCSNpp(score_network_settings(config, 3, 3))
    n_parameters = sum(parameter.numel() for parameter in network.parameters())
    assert n_parameters == (106_632_579 if "deep" in path.stem else 61_804_419)
