"""Properties of the score matching loss that need no recorded numbers."""

import dataclasses
import math

import pytest
import torch

from diffusion.continuous.gaussian import GaussianData
from diffusion.continuous.kernel import noise_multiplier, perturb
from diffusion.continuous.losses import WEIGHTINGS, score_matching_loss, training_times
from diffusion.continuous.process import initial_state, split
from diffusion.tensors import expand
from tests.diffusion.settings import DATA, PROCESSES
from util.errors import UsageError

CLD = PROCESSES["CLD, constant beta"]
DSM = dataclasses.replace(CLD, objective="dsm")


def draws(n, generator):
    x0 = DATA.sample(torch.randn(n, 2, generator=generator)).float()
    return x0, torch.rand(n, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("process", [CLD, DSM, PROCESSES["VP"]])
def test_the_score_of_the_kernel_has_no_loss(process, weighting):
    generator = torch.Generator().manual_seed(0)
    x0, uniform = draws(16, generator)
    velocity_noise = torch.randn(16, 2, generator=generator)
    noise = torch.randn(initial_state(process, x0).shape, generator=generator)

    def kernel_score(u, t):  # noqa: ARG001
        z = split(process, noise)[-1]
        return z * expand(noise_multiplier(process, t).float(), z)

    loss = score_matching_loss(
        process, kernel_score, x0, uniform, noise, velocity_noise, weighting=weighting, loss_eps=1e-3
    )
    torch.testing.assert_close(loss, torch.zeros(16, dtype=torch.float64), rtol=0, atol=1e-8)


@pytest.mark.parametrize("process", [CLD, DSM, PROCESSES["CLD, linear beta"], PROCESSES["VP"]])
def test_the_loss_is_smallest_for_the_exact_score(process):
    """Scaled scores c s: the mean loss is a parabola in c with its minimum at 1."""
    n = 100_000
    generator = torch.Generator().manual_seed(0)
    x0, uniform = draws(n, generator)
    velocity_noise = torch.randn(n, 2, generator=generator)
    noise = torch.randn(initial_state(process, x0).shape, generator=generator)
    exact_score = DATA.score(process)

    losses = []
    for factor in (0.0, 1.0, 2.0):
        loss = score_matching_loss(
            process,
            lambda u, t, factor=factor: factor * exact_score(u, t),
            x0,
            uniform,
            noise,
            velocity_noise,
            weighting="reweightedv2",
            loss_eps=1e-2,
        )
        losses.append(loss.mean().item())
    at_0, at_1, at_2 = losses
    minimum = 1 + (at_0 - at_2) / (2 * (at_0 - 2 * at_1 + at_2))
    assert minimum == pytest.approx(1.0, abs=0.02)


def test_the_kernel_of_hsm_is_the_exact_marginal_of_a_single_data_point():
    """Its score is that of the kernel: the velocity half of the joint score, the initial velocity averaged
    over."""
    process = dataclasses.replace(CLD, numerical_eps=0.0)
    point = GaussianData(DATA.mean, 1e-20 * torch.eye(2, dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    t = torch.tensor([0.01, 0.1, 0.7], dtype=torch.float64)
    noise = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    u0 = initial_state(process, DATA.mean.expand(3, -1))
    z = split(process, noise)[1]
    score = point.score(process)(perturb(process, u0, noise, t), t)
    torch.testing.assert_close(score, z * noise_multiplier(process, t)[:, None], rtol=1e-5, atol=1e-5)


def test_training_times_stay_in_their_interval():
    uniform = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    t = training_times(uniform, 1e-5)
    assert t[0] == 1e-5
    assert t.dtype == torch.float64
    assert t[2] <= 1


def test_values_that_are_not_finite_are_passed_on():
    x0, uniform = draws(3, torch.Generator().manual_seed(0))

    def score(u, t):  # noqa: ARG001
        return torch.tensor([[1.0, math.nan], [0.0, 0.0], [math.inf, 0.0]])

    loss = score_matching_loss(
        CLD, score, x0, uniform, torch.zeros(3, 4), weighting="likelihood", loss_eps=1e-5
    )
    assert loss.isfinite().tolist() == [False, True, False]


def test_bad_arguments():
    x0, uniform = draws(2, torch.Generator().manual_seed(0))

    def score(u, t):  # noqa: ARG001
        return torch.zeros(2, 2)

    with pytest.raises(UsageError, match="reweighted3"):
        score_matching_loss(
            CLD, score, x0, uniform, torch.zeros(2, 4), weighting="reweighted3", loss_eps=1e-5
        )
    with pytest.raises(ValueError, match="velocity"):
        score_matching_loss(DSM, score, x0, uniform, torch.zeros(2, 4), weighting="likelihood", loss_eps=1e-5)
