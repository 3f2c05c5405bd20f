"""The hsivi system: what it starts from, what an update touches, and that a run is a function of its options alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evaluators.settings import check_evaluation
from main import parse_config
from models.log_gamma import LOG_GAMMA
from tests.configuration import configured
from tests.spelling import positions_without_data, training_batches
from tests.trainers.steps import take_step
from tests.util.hsivi_checkpoint import published
from trainers.ddpm.method import NoisePrediction
from trainers.ddpm.options import DdpmOptions
from trainers.hsivi.method import HierarchicalMatching, check_hsivi, make_hierarchy_of
from trainers.hsivi.options import HsiviOptions
from trainers.systems import SYSTEMS
from util.config import Config
from util.data.digits import open_digits
from util.data.loader import MicroBatch
from util.data.no_data import NoData
from util.distributed import Distributed
from util.errors import UsageError
from util.noise import Noise
from util.option_values import flags_of
from util.snapshot import write_snapshot

TOTAL = 8


def configure(**options: Any) -> Config:
    """A small model of 8x8 grey images; options by their flags."""
    settings: dict[str, Any] = {
        "system": "hsivi", "image_channels": 1, "image_size": 8, "name": "ddpm_unet", "n_channels": 8, "n_groups": 4,
        "ch_mult": [1, 2], "n_resblocks": 1, "attn_resolutions": [4], "dropout": 0.0, "skip_type": "quad",
        "n_discrete_steps": 6, "total_batch_size": TOTAL, "n_train_iters": 100, "n_warmup_iters": 2,
        "f_learning_times": 2, "phi_learning_rate": 1e-2, "f_learning_rate": 1e-2, "pretrained_model": "teacher.pth",
        "ema_rate": 0.5, **options,
    }  # fmt: skip
    if settings["system"] == "ddpm":
        of_hsivi = flags_of(HsiviOptions) - flags_of(DdpmOptions)
        settings = {name: value for name, value in settings.items() if name not in of_hsivi}
    return configured(**settings)


def snapshot_of(method: Any, config: Config, path: Path) -> Path:
    write_snapshot(path, {**method.state.state_dict(), "config": config.flat(), "versions": {}})
    return path


def randomize(network: torch.nn.Module, seed: int) -> None:
    """Weights without the zeros that networks start with, so that every part counts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot of --system ddpm, whose averages differ from its weights."""
    config = configure(system="ddpm", sampling_method="ddim")
    method = NoisePrediction(config, Distributed())
    randomize(method.network, 1)
    method.updater.ema.update()
    return snapshot_of(method, config, tmp_path_factory.mktemp("teacher") / "teacher.pth")


def started(path: Path, **options: Any) -> HierarchicalMatching:
    method = HierarchicalMatching(configure(pretrained_model=str(path), **options), Distributed())
    method.load_pretrained()
    return method


def step_batches(step: int, n_micro_batches: int = 1) -> list[MicroBatch]:
    share = {"rank": 0, "world_size": 1, "n_micro_batches": n_micro_batches}
    return next(positions_without_data(first_step=step, total_batch_size=TOTAL, **share))


def train(method: HierarchicalMatching, n_steps: int, n_micro_batches: int = 1) -> None:
    for _ in range(n_steps):
        take_step(method, step_batches(method.state.step, n_micro_batches))


def weights(method: HierarchicalMatching, name: str) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in method.state.networks[name].state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_teachers_averages_become_all_three_networks(teacher):
    method = started(teacher)
    shadow = torch.load(teacher, weights_only=True)["emas"]["noise"]["shadow"]
    assert same(weights(method, "teacher"), shadow)
    assert same(weights(method, "f"), shadow)
    phi = weights(method, "phi")
    assert not phi.pop(LOG_GAMMA).any()
    assert same(phi, shadow)
    for name, ema in method.state.emas.items():
        assert ema.n_updates == 0
        assert same(ema.shadow, weights(method, name))


@pytest.mark.parametrize("published_behaviour", [False, True])
def test_a_whole_model_is_taken_over_averaged_or_raw(published_behaviour, teacher, tmp_path):
    first = started(teacher)
    train(first, 4)
    ours = snapshot_of(first, first.config, tmp_path / "ours.pth")
    theirs = tmp_path / "theirs.pth"
    torch.save(published(first.state.networks), theirs)
    for path, averages in (
        (ours, {name: ema.shadow for name, ema in first.state.emas.items()}),
        (theirs, {name: {key: 2 * value for key, value in weights(first, name).items()} for name in ("phi", "f")}),
    ):
        method = started(path, published_behaviour=published_behaviour, n_discrete_steps=11)
        assert same(weights(method, "teacher"), weights(first, "teacher"))
        for name in ("phi", "f"):
            expected = weights(first, name) if published_behaviour else averages[name]
            assert same(weights(method, name), expected)
            assert same(method.state.emas[name].shadow, expected)


def test_published_teachers(teacher, tmp_path):
    networks = torch.load(teacher, weights_only=True)["networks"]["noise"]
    flat, nested = tmp_path / "flat.pth", tmp_path / "nested.pth"
    torch.save(networks, flat)
    shadow = {f"module.{name}": 3 * value for name, value in networks.items()}
    torch.save({"model": shadow, "ema": {"decay": 0.9, "num_updates": 2, "shadow": shadow}, "epoch": 1}, nested)
    assert same(weights(started(flat), "f"), networks)
    assert same(weights(started(nested), "f"), {name: 3 * value for name, value in networks.items()})

    other = configure(name="improved_unet", learn_sigma=True)
    improved = tmp_path / "improved.pth"
    model = HierarchicalMatching(other, Distributed())
    randomize(model.f, 3)
    torch.save(model.f.state_dict(), improved)
    method = started(improved, name="improved_unet", learn_sigma=True)
    assert same(weights(method, "teacher"), weights(model, "f"))


def truncated(path: Path, target: Path) -> None:
    target.write_bytes(path.read_bytes()[:3000])


def altered(path: Path, target: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    target.write_bytes(content)


WRONG_FILES = {
    "absent": (lambda path, target: None, "no such file"),
    "truncated": (truncated, "not a readable PyTorch checkpoint"),
    "altered": (altered, "do not match its checksum"),
    "text": (lambda path, target: target.write_text("weights"), "not a readable PyTorch checkpoint"),
    "a tensor": (lambda path, target: torch.save(torch.zeros(3), target), "no named tensors"),
    "another network": (lambda path, target: torch.save({"linear.weight": torch.zeros(3)}, target), "in_conv.weight"),
    "another system": (
        lambda path, target: write_snapshot(
            target, {"step": 1, "networks": {"score": {}}, "emas": {}, "config": {"system": "cld"}}
        ),
        "a snapshot of --system cld",
    ),
    "a later format": (
        lambda path, target: write_snapshot(target, {**torch.load(path, weights_only=True), "format": 1000}),
        "format 1000.*update the program",
    ),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_files_that_are_no_teacher(case, teacher, tmp_path):
    make, expected = WRONG_FILES[case]
    make(teacher, tmp_path / "bad.pth")
    with pytest.raises(UsageError, match=f"--pretrained_model .*bad.pth.*{expected}") as raised:
        started(tmp_path / "bad.pth")
    assert "\n" not in str(raised.value)


WRONG_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "wider": ({"n_channels": 16}, "a snapshot does not fit the network 'teacher'.*use the settings"),
    "other levels": ({"ch_mult": [1, 2, 2]}, "downsamples.level_1.1.1.weight"),
    "other architecture": ({"name": "improved_unet"}, "--name improved_unet"),
    "other schedule": (
        {"noise_schedule": "cosine"},
        "trained with noise_schedule = linear.*set --noise_schedule linear",
    ),
    "other number of steps": ({"diffusion_steps": 2000}, "diffusion_steps = 1000.*set --teacher_diffusion_steps 1000"),
}


@pytest.mark.parametrize("case", WRONG_SETTINGS)
def test_teachers_that_do_not_fit(case, teacher):
    options, expected = WRONG_SETTINGS[case]
    with pytest.raises(UsageError, match=expected) as raised:
        started(teacher, **options)
    assert "\n" not in str(raised.value)


def test_gammas_of_their_own_layers_fit_no_other_number_of_steps(teacher, tmp_path):
    first = started(teacher, n_discrete_steps=11, independent_log_gamma="use")
    path = snapshot_of(first, first.config, tmp_path / "eleven.pth")
    with pytest.raises(UsageError, match=r"\(10, 1, 8, 8\), not the \(5, 1, 8, 8\) of --n_discrete_steps 6"):
        started(path, n_discrete_steps=6, independent_log_gamma="use")


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "nothing to start from": ({"pretrained_model": ""}, "give --pretrained_model"),
    "points": ({"is_image": False}, "needs images"),
    "dropout": ({"dropout": 0.1}, "set dropout = 0"),
    "one point": ({"n_discrete_steps": 1}, "--n_discrete_steps 1"),
    "too many points": ({"n_discrete_steps": 500}, "quad"),
    "too many pairs": ({"f_pairs_per_chain": 6}, "--f_pairs_per_chain 6"),
    "no spread": ({"eta": 0.0}, "--eta 0.0"),
    "teacher of other steps": ({"teacher_diffusion_steps": 4000}, "cosine"),
    "teacher of coarser steps": ({"teacher_diffusion_steps": 1500, "noise_schedule": "cosine"}, "no multiple"),
    "score network": ({"name": "ncsnpp"}, "--name ncsnpp"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_contradictions(case):
    options, expected = CONTRADICTIONS[case]
    check_hsivi(configure())
    with pytest.raises(UsageError, match=expected):
        check_hsivi(configure(**options))


def test_there_is_no_likelihood_to_ask_for():
    with pytest.raises(UsageError, match="hsivi has no likelihood"):
        check_evaluation(configure(mode="eval", eval_likelihood=True), SYSTEMS["hsivi"].has_likelihood)


def test_few_points_are_trained_like_many(teacher):
    method = started(teacher, n_discrete_steps=3)
    before = weights(method, "teacher")
    assert before["in_conv.weight"].any()
    train(method, 2)
    assert same(weights(method, "teacher"), before)


def test_labels_are_those_the_teacher_saw():
    options: dict[str, Any] = {"noise_schedule": "cosine", "skip_type": "uniform", "rescale_timesteps": True}
    options["teacher_diffusion_steps"] = 4000
    plain = torch.arange(6) * 166.0
    ours = HierarchicalMatching(configure(**options), Distributed())
    theirs = HierarchicalMatching(configure(**options, published_behaviour=True), Distributed())
    torch.testing.assert_close(ours.hierarchy.labels, plain + 0.75)
    torch.testing.assert_close(theirs.hierarchy.labels, plain)


def test_an_update_touches_its_own_network_only(teacher):
    method = started(teacher)
    before = {name: weights(method, name) for name in method.state.networks}
    train(method, 1)
    assert same(weights(method, "phi"), before["phi"])
    assert not same(weights(method, "f"), before["f"])
    train(method, 1)
    assert not same(weights(method, "phi"), before["phi"])
    assert method.log_gamma.any()
    assert same(weights(method, "teacher"), before["teacher"])
    assert all(parameter.grad is None for parameter in method.teacher.parameters())
    assert all(parameter.requires_grad for parameter in method.f.parameters())
    assert {name: ema.n_updates for name, ema in method.state.emas.items()} == {"phi": 1, "f": 2}


def test_a_kill_between_the_two_updates_costs_only_that_step(teacher, monkeypatch):
    undisturbed = started(teacher)
    train(undisturbed, 4)

    killed = started(teacher)
    train(killed, 3)
    snapshot = copy.deepcopy(killed.state.state_dict())
    before = weights(killed, "phi")
    with monkeypatch.context() as patch:

        def die(*_: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(killed._f_updater, "apply", die)
        with pytest.raises(KeyboardInterrupt):
            train(killed, 1)
    assert not same(weights(killed, "phi"), before)

    continued = HierarchicalMatching(configure(), Distributed())
    continued.state.load_state_dict(snapshot, "snapshot")
    train(continued, 1)
    for name in undisturbed.state.networks:
        assert same(weights(continued, name), weights(undisturbed, name))
    for name, ema in undisturbed.state.emas.items():
        assert same(continued.state.emas[name].shadow, ema.shadow)


@pytest.mark.parametrize("n_pairs", [1, 3])
def test_micro_batches_change_nothing(n_pairs, teacher):
    options = {"f_pairs_per_chain": n_pairs}
    whole, pieces = started(teacher, **options), started(teacher, **options)
    train(whole, 2)
    train(pieces, 2, n_micro_batches=4)
    for name in ("phi", "f"):
        for key, value in weights(whole, name).items():
            torch.testing.assert_close(weights(pieces, name)[key], value, rtol=1e-3, atol=1e-4)


def count_samples(network: torch.nn.Module) -> list[int]:
    counts: list[int] = []
    network.register_forward_hook(lambda _module, inputs, _output: counts.append(len(inputs[0])))
    return counts


@pytest.mark.parametrize("n_pairs", [1, 2])
def test_network_evaluations_of_a_step(n_pairs, teacher):
    method = started(teacher, f_pairs_per_chain=n_pairs, f_learning_times=2)
    counts = {name: count_samples(network) for name, network in method.state.networks.items()}
    train(method, 1)
    n_layers = method.hierarchy.n_layers
    assert sum(counts["f"]) == n_pairs * TOTAL
    assert not counts["teacher"]
    if n_pairs == 1:
        assert sum(counts["phi"]) == TOTAL * (n_layers + 1) // 2
    else:
        assert TOTAL * (n_layers + 1) // 2 < sum(counts["phi"]) <= TOTAL * n_layers
    for found in counts.values():
        found.clear()
    train(method, 1)
    assert sum(counts["teacher"]) == TOTAL
    assert sum(counts["f"]) == (n_pairs + 1) * TOTAL


@pytest.mark.parametrize("published_behaviour", [False, True])
def test_samples_and_trajectories(published_behaviour, teacher):
    method = started(teacher, published_behaviour=published_behaviour)
    train(method, 4)
    raw, averaged = weights(method, "phi"), method.state.emas["phi"].shadow
    seen = []
    name = "in_conv.weight"
    method.phi.register_forward_hook(lambda *_: seen.append(method.phi.state_dict()[name].clone()))

    def noise() -> Noise:
        return Noise(5, "sample", torch.arange(3))

    samples = method.sample(noise())
    assert samples.n_evaluations == len(seen) == 5
    assert samples.data.shape == (3, 1, 8, 8)
    assert torch.equal(seen[0], raw[name] if published_behaviour else averaged[name])
    assert not torch.equal(raw[name], averaged[name])
    states = method.trajectory(noise())
    assert {key: images.shape[1] for key, images in states.items()} == {"predicted data": 5, "state": 6}
    assert torch.equal(states["state"][:, -1], samples.data)
    assert all(float(images.min()) >= 0 and float(images.max()) <= 1 for images in states.values())
    losses = method.validation_loss(NoData((1, 8, 8)).read(np.arange(3)), noise())
    assert losses.shape == (3,)
    assert losses.isfinite().all()


def test_competitors_spend_as_many_evaluations_on_the_teacher(teacher):
    method = started(teacher)
    counts = count_samples(method.teacher)
    samplers = method.compared_samplers
    assert list(samplers) == [
        "hsivi", "ddim_quad", "ddim_uniform", "ddim_same_steps", "ancestral_quad", "ancestral_uniform",
        "ancestral_same_steps",
    ]  # fmt: skip
    results = {name: sampler(Noise(5, "sample", torch.arange(2))) for name, sampler in samplers.items()}
    assert all(samples.n_evaluations == 5 for samples in results.values())
    assert counts == [2] * 5 * 6
    assert len({samples.data.sum().item() for samples in results.values()}) == len(results)


def test_positions_are_those_of_batches_with_data():
    share = {"first_step": 3, "total_batch_size": 24, "rank": 1, "world_size": 2, "n_micro_batches": 3}
    images = open_digits("train", 8, 1)
    device = torch.device("cpu")
    with_data = next(training_batches(images, seed=0, n_workers=0, device=device, random_flip=False, **share))
    without = next(positions_without_data(**share))
    for one, other in zip(with_data, without, strict=True):
        assert torch.equal(one.positions, other.positions)


CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "hsivi").glob("*.txt"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_published_settings(path):
    config = parse_config(["-cc", str(path), "--pretrained_model", "teacher.pth"])
    check_hsivi(config)
    assert config[HsiviOptions].n_discrete_steps == int(path.stem.split("_")[1]) + 1
    assert config[HsiviOptions].f_learning_rate == pytest.approx(5 * config[HsiviOptions].phi_learning_rate)
    labels = make_hierarchy_of(config).labels
    assert (
        float(labels[-1])
        == {"quad": 800, "uniform": 1000 // len(labels) * (len(labels) - 1) + 0.75}[config[HsiviOptions].skip_type]
    )


def test_another_number_of_time_points_is_another_run():
    assert configure(n_discrete_steps=11).difference(configure().flat()) == ["n_discrete_steps: 6 -> 11"]
    other = configure(system="ddpm", n_discrete_steps=11)
    assert other.difference(configure(system="ddpm").flat()) == []
