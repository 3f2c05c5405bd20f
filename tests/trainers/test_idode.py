"""The idode system: one step whatever its micro-batches, likelihoods, augmentation, checks, fine-tuning."""

import copy

import pytest
import torch

from diffusion.log_snr.dequantization import UNIFORM_START_GAMMA
from tests.configuration import configured
from tests.trainers.steps import take_step
from trainers.idode.augmentation import flip_and_rotate
from trainers.idode.method import DiffusionOde, check_idode
from util.config import Config
from util.data.loader import MicroBatch
from util.distributed import Distributed
from util.errors import UsageError
from util.noise import Noise

N_SAMPLES = 8


def make_config(**options) -> Config:
    """A small network on 4 x 4 images; options by their flags."""
    settings = {
        "system": "idode", "sde": "vpsde", "name": "vdm_unet", "image_size": 4, "image_channels": 1, "n_channels": 32,
        "n_resblocks": 1, "dropout": 0.0, "weighting": "likelihood", "importance_sampling": True,
        "optimizer": "AdamW", "adam_beta2": 0.99, "weight_decay": 0.01, "n_warmup_iters": 0, "ema_rate": 0.9,
        "grad_clip": 0.0,
        "total_batch_size": N_SAMPLES, "likelihood_rtol": 1e-3, "likelihood_atol": 1e-3, "sampling_rtol": 1e-3,
        "sampling_atol": 1e-3, **options,
    }  # fmt: skip
    config = configured(**settings)
    check_idode(config)
    return config


def make_method(**options) -> DiffusionOde:
    method = DiffusionOde(make_config(**options), Distributed())
    # The last layers begin at zero, from where most gradients are zero.
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in method.network.parameters():
            parameter += 0.03 * torch.randn(parameter.shape, generator=generator)
    return method


def micro_batches(n_pieces: int = 1, step: int = 0) -> list[MicroBatch]:
    levels = torch.randint(256, (N_SAMPLES, 1, 4, 4), generator=torch.Generator().manual_seed(step))
    positions = step * N_SAMPLES + torch.arange(N_SAMPLES)
    pieces = zip(levels.to(torch.uint8).chunk(n_pieces), positions.chunk(n_pieces), strict=True)
    return [MicroBatch(data, places) for data, places in pieces]


def times_of_step(monkeypatch, n_pieces: int) -> torch.Tensor:
    seen = []

    def record(_schedule, _parameterisation, predict, x, t, _noise, **_options):
        seen.append(t)
        return {"diffusion": predict(x.float(), t).flatten(1).square().sum(1)}

    monkeypatch.setattr("trainers.idode.method.diffusion_terms", record)
    method = make_method()
    method.state.step = 3
    take_step(method, micro_batches(n_pieces, step=3))
    return torch.cat(seen)


def test_times_are_antithetic_over_the_whole_batch_however_it_is_cut(monkeypatch):
    whole = times_of_step(monkeypatch, 1)
    assert torch.equal(times_of_step(monkeypatch, 4), whole)
    gaps = whole.sort().values.diff()
    torch.testing.assert_close(gaps, torch.full_like(gaps, 1 / N_SAMPLES))


@pytest.mark.parametrize("options", [{}, {"second_order": True, "sde": "sp", "augmentation": True}])
def test_a_step_does_not_depend_on_its_micro_batches(options):
    whole, cut = make_method(**options), make_method(**options)
    for step in range(2):
        of_whole, of_cut = take_step(whole, micro_batches(1, step)), take_step(cut, micro_batches(4, step))
        torch.testing.assert_close(of_whole["loss"], of_cut["loss"], rtol=1e-5, atol=0)
        torch.testing.assert_close(of_whole["gradient_norm"], of_cut["gradient_norm"], rtol=1e-4, atol=0)


def test_every_parameter_is_trained_and_only_biases_escape_weight_decay():
    method = make_method()
    before = copy.deepcopy(method.network.state_dict())
    take_step(method, micro_batches())
    assert all(not torch.equal(before[name], value) for name, value in method.network.state_dict().items())
    decayed, exempt = method.updater.optimizer.param_groups
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.01, 0.0)
    biases = {id(p) for name, p in method.network.named_parameters() if name.endswith(".bias")}
    assert {id(p) for p in exempt["params"]} == biases
    assert all(group["betas"] == (0.9, 0.99) for group in (decayed, exempt))


def test_fine_tuning_keeps_the_optimiser_and_adds_the_second_order_objective():
    first = make_method()
    for step in range(2):
        take_step(first, micro_batches(1, step))
    saved = copy.deepcopy(first.state.state_dict())
    second = make_method(second_order=True)
    second.state.load_state_dict(saved, "test")
    assert second.state.step == 2
    for mine, theirs in zip(first.network.parameters(), second.network.parameters(), strict=True):
        for key, value in first.updater.optimizer.state[mine].items():
            assert torch.equal(second.updater.optimizer.state[theirs][key], value)
    noises = [Noise(0, "test", torch.arange(N_SAMPLES)) for _ in range(2)]
    validation = [
        method.validation_loss(micro_batches()[0].data, noise)
        for method, noise in zip((first, second), noises, strict=True)
    ]
    assert (validation[1] > validation[0]).all()
    assert not validation[1].requires_grad
    losses = [take_step(method, micro_batches(1, 2))["loss"] for method in (first, second)]
    assert losses[1] > losses[0]


@pytest.mark.parametrize("dequantization", ["uniform", "variational", "truncated_normal"])
@pytest.mark.parametrize("n_importance_samples", [1, 2])
def test_likelihoods(dequantization, n_importance_samples):
    method = make_method(dequantization=dequantization, n_importance_samples=n_importance_samples, second_order=True)
    batch = micro_batches()[0].data[:3]
    names = {
        "uniform": {"scaling"}, "variational": {"reconstruction", "entropy"}, "truncated_normal": {"entropy"}
    }[dequantization]  # fmt: skip
    names |= {"importance_sampling"} if n_importance_samples > 1 else set()
    expected = {
        "nelbo": {"reconstruction", "prior", "diffusion"},
        "negative_log_likelihood": names | {"prior", "divergence"},
    }
    assert list(method.likelihoods) == list(expected)
    for name, evaluate in method.likelihoods.items():
        result = evaluate(batch, Noise(0, "test", torch.arange(3)))
        assert set(result.terms) == expected[name]
        assert result.value.dtype == torch.float64
        torch.testing.assert_close(sum(result.terms.values()), result.value)
        assert (result.n_evaluations > 0) == (name == "negative_log_likelihood")
        alone = evaluate(batch[1:2], Noise(0, "test", torch.tensor([1])))
        torch.testing.assert_close(alone.value, result.value[1:2], rtol=2e-3, atol=0)
    assert all(p.grad is None for p in method.network.parameters())


def test_published_behaviour_changes_what_it_says():
    batch = micro_batches()[0].data[:2]

    def terms(**options):
        method = make_method(sde="sp", **options)
        quantity = "nelbo" if "dequantization" not in options else "negative_log_likelihood"
        return method.likelihoods[quantity](batch, Noise(0, "test", torch.arange(2))).terms

    ours, theirs = terms(), terms(published_behaviour=True)
    assert (theirs["reconstruction"] > ours["reconstruction"]).all()
    assert torch.equal(theirs["diffusion"], ours["diffusion"])
    options = {"dequantization": "truncated_normal", "n_importance_samples": 2}
    ours, theirs = terms(**options), terms(published_behaviour=True, **options)
    bits = torch.full((2,), 1 / 16, dtype=torch.float64)  # log2 K / D
    torch.testing.assert_close(ours["importance_sampling"] - theirs["importance_sampling"], bits)
    above = UNIFORM_START_GAMMA + 1
    options = {"dequantization": "uniform", "gamma_min": above}
    assert not torch.equal(terms(**options)["divergence"], terms(published_behaviour=True, **options)["divergence"])


def test_samples_are_images():
    samples = make_method().sample(Noise(0, "test", torch.arange(3)))
    assert samples.data.shape == (3, 1, 4, 4)
    levels = samples.data.double() * 255
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    assert ((levels >= 0) & (levels <= 255.01)).all()


def test_augmentation_and_what_the_network_is_told():
    n = 4000
    image = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8)
    images, conditioning = flip_and_rotate(image.expand(n, 1, 2, 2), Noise(0, "test", torch.arange(n)))
    changed = (images[:, 0] != image).flatten(1).any(1)
    assert torch.equal(conditioning == 1, changed)
    kinds, counts = images.flatten(1).unique(dim=0, return_counts=True)
    assert len(kinds) == 8
    share = {tuple(kind.tolist()): count / n for kind, count in zip(kinds, counts.tolist(), strict=True)}
    assert share[1, 2, 3, 4] == pytest.approx(0.25, abs=0.03)
    assert share[2, 1, 4, 3] == pytest.approx(0.25, abs=0.03)
    assert all(value == pytest.approx(1 / 12, abs=0.02) for kind, value in share.items() if kind[0] > 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sde": "cld"}, "--sde cld"),
        ({"is_image": False}, "is_image"),
        ({"name": "ncsnpp"}, "vdm_unet"),
        ({"uniform_dequantization": True}, "uniform_dequantization"),
        ({"weighting": "reweightedv2"}, "weighting"),
        ({"sampling_method": "em"}, "sampling_method"),
        ({"velocity": False}, "--velocity"),
        ({"second_order": True, "compile": True}, "--compile"),
        ({"augmentation": True, "random_flip": True}, "random_flip"),
        ({"gamma_min": 6.0}, "gamma_min"),
        ({"n_channels": 48}, "n_channels"),
        ({"gamma_max": -12.0, "dequantization": "uniform"}, "gamma_max"),
    ],
)
def test_contradictions(options, message):
    with pytest.raises(UsageError, match=message):
        make_config(**options)


def test_noise_prediction_trains():
    method = make_method(velocity=False, importance_sampling=False, antithetic_time_sampling=False)
    assert take_step(method, micro_batches())["loss"].isfinite()
    assert method.validation_loss(micro_batches()[0].data, Noise(0, "test", torch.arange(N_SAMPLES))).isfinite().all()
