"""The ddpm system: its objective, samples and bound, whatever the batches and micro-batches."""

import numpy as np
import pytest
import torch

from main import parse_config
from tests.trainers.steps import take_step
from trainers.check import check_config
from trainers.ddpm.method import NoisePrediction, label_scale
from util.data.digits import open_digits
from util.data.loader import MicroBatch
from util.distributed import Distributed
from util.errors import UsageError
from util.noise import Noise

SMALL = [
    "-cc", "configs/smoke/ddpm.txt", "--n_channels", "8", "--n_groups", "4", "--total_batch_size", "8",
    "--n_warmup_iters", "0", "--diffusion_steps", "30", "--n_discrete_steps", "6", "--bound_n_labels", "0",
]  # fmt: skip


def make(*options: str) -> NoisePrediction:
    config = parse_config([*SMALL, *options])
    check_config(config)
    return NoisePrediction(config, Distributed())


def batch(n: int) -> torch.Tensor:
    return open_digits("train", 8, 1).read(np.arange(n))


def micro_batches(n: int, n_parts: int) -> list[MicroBatch]:
    parts = zip(batch(n).chunk(n_parts), torch.arange(n).chunk(n_parts), strict=True)
    return [MicroBatch(data, positions) for data, positions in parts]


def test_training_lowers_the_loss_and_does_not_depend_on_micro_batches():
    whole, parts = (make("--learning_rate", "5e-3") for _ in range(2))
    first = take_step(whole, micro_batches(8, 1))
    again = take_step(parts, micro_batches(8, 4))
    for name in ("loss", "gradient_norm"):
        torch.testing.assert_close(first[name], again[name], rtol=1e-4, atol=0)
    assert first["loss"] == pytest.approx(1.0, rel=0.3)  # a new network predicts nothing
    losses = [take_step(whole, micro_batches(8, 1))["loss"] for _ in range(30)]
    assert sum(losses[-5:]) / 5 < 0.7 * first["loss"]
    assert whole.state.step == 31
    averaged = whole.validation_loss(batch(8), Noise(0, "test", torch.arange(8)))
    assert averaged.shape == (8,)
    assert averaged.dtype == torch.float64


@pytest.mark.parametrize(
    "options", [("--sampling_method", "ancestral"), ("--sampling_method", "ddim", "--ddim_eta", "0.5")], ids=str
)
def test_samples_are_those_of_their_indices_and_end_the_trajectory(options):
    method = make(*options)
    four = method.sample(Noise(0, "test", torch.arange(4)))
    assert four.data.shape == (4, 1, 8, 8)
    assert four.data.dtype == torch.float32
    assert four.n_evaluations == 6
    assert four.data.min() >= 0
    assert four.data.max() <= 1
    torch.testing.assert_close(method.sample(Noise(0, "test", torch.arange(2, 4))).data, four.data[2:])
    shown = method.trajectory(Noise(0, "test", torch.arange(4)))
    assert {name: tuple(images.shape) for name, images in shown.items()} == {
        "state": (4, 6, 1, 8, 8),
        "predicted data": (4, 6, 1, 8, 8),
    }
    torch.testing.assert_close(shown["state"][:, -1].float(), four.data)


def test_trajectory_of_many_steps_shows_ten_of_them():
    method = make("--n_discrete_steps", "30")
    shown = method.trajectory(Noise(0, "test", torch.arange(2)))
    assert shown["state"].shape == (2, 10, 1, 8, 8)
    torch.testing.assert_close(shown["state"][:, -1].float(), method.sample(Noise(0, "test", torch.arange(2))).data)


def test_bound_is_the_sum_of_its_terms_in_bits():
    method = make()
    assert set(method.likelihoods) == {"nelbo"}
    likelihood = method.nelbo(batch(5), Noise(0, "test", torch.arange(5)))
    assert set(likelihood.terms) == {"prior", "diffusion", "decoder"}
    assert likelihood.value.shape == (5,)
    torch.testing.assert_close(sum(likelihood.terms.values()), likelihood.value)
    assert likelihood.n_evaluations == 30
    # A network that predicts nothing says little more than that grey levels are one of 256.
    assert 6 < likelihood.value.mean() < 20
    some = make("--bound_n_labels", "5").nelbo(batch(5), Noise(0, "test", torch.arange(5)))
    assert some.n_evaluations == 6
    alone = method.nelbo(batch(5)[3:], Noise(0, "test", torch.arange(3, 5)))
    torch.testing.assert_close(alone.value, likelihood.value[3:])


def test_bound_and_samples_use_averaged_weights():
    method = make("--ema_rate", "1.0", "--learning_rate", "0.1")
    noise = [Noise(0, "test", torch.arange(3)) for _ in range(4)]
    with torch.no_grad():
        for parameter in method.network.parameters():
            parameter += 1.0
    moved = make()
    torch.testing.assert_close(method.sample(noise[0]).data, moved.sample(noise[1]).data)
    torch.testing.assert_close(method.nelbo(batch(3), noise[2]).value, moved.nelbo(batch(3), noise[3]).value)
    assert method.network.training


def test_labels_are_rescaled_on_request():
    assert label_scale(parse_config([*SMALL])) == 1.0
    assert label_scale(parse_config([*SMALL, "--rescale_timesteps"])) == pytest.approx(1000 / 30)
    seen = []
    method = make("--rescale_timesteps")
    method.network.register_forward_pre_hook(lambda _module, arguments: seen.append(arguments[1]))
    method.sample(Noise(0, "test", torch.arange(2)))
    assert seen[0].tolist() == pytest.approx([25 * 1000 / 30] * 2)
    assert seen[-1].tolist() == [0.0, 0.0]


def test_improved_unet_can_be_trained_too():
    method = make("--name", "improved_unet", "--learn_sigma", "--num_heads", "2", "--noise_schedule", "cosine")
    first = take_step(method, micro_batches(8, 2))
    assert first["gradient_norm"] > 0
    variance_outputs = method.network.out[2].weight[1:]
    take_step(method, micro_batches(8, 2))
    assert (variance_outputs == 0).all()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--sampling_method", "ode"], "--sampling_method"),
        (["--name", "ncsnpp"], "--name"),
        (["--center_image", "false"], "center_image"),
        (["--uniform_dequantization"], "--uniform_dequantization"),
        (["--n_discrete_steps", "31"], "31 steps"),
        (["--skip_type", "quad", "--n_discrete_steps", "20"], "skip_type quad"),
        (["--diffusion_steps", "20"], "more than 20"),
        (["--learn_sigma"], "--learn_sigma"),
        (["--ch_mult", "2,2"], "ch_mult"),
    ],
    ids=str,
)
def test_contradictions_are_one_line(options, word):
    with pytest.raises(UsageError, match=word) as caught:
        make(*options)
    assert "\n" not in str(caught.value)
