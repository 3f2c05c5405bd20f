"""Score losses on latents against the recorded ones."""

from itertools import product

import numpy as np
import pytest
import torch

from diffusion.continuous.latent_loss import (
    latent_score_loss,
    perturb_latents,
    reconstruction_residual,
    signal_and_noise_scales,
)
from diffusion.continuous.soft_truncation import soft_truncated_time
from tests.golden.indm_setup import FLOAT64, Arrays, close, load, make_process, toy_score
from tests.spelling import weighted_times

T_MIN = 1e-5
# A float32 run whose schedule is in float64 lies near the recorded float64 numbers, not near the recorded float32 ones.
FLOAT32 = 5e-4
PRECISIONS = [(torch.float64, FLOAT64), (torch.float32, FLOAT32)]


class Case:
    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.arrays: Arrays = load("indm", "score_losses")
        self.process = make_process(name, self.arrays[f"{name}/params"])
        self.score = toy_score(name, self.process, torch.from_numpy(self.arrays[f"{name}/score_abc"]).to(dtype))
        self.x, self.z, self.z_recon = (torch.from_numpy(self.arrays[key]).to(dtype) for key in ("x", "z", "z_recon"))
        self.u = torch.from_numpy(self.arrays["u"])
        self.n_dimensions = self.x[0].numel()

    def times(self, weighting: str, importance_sampling: bool, smallest: float = T_MIN):
        return weighted_times(
            self.process, self.u, smallest, weighting=weighting, importance_sampling=importance_sampling,
            published_behaviour=True,
        )  # fmt: skip

    def loss(self, *times) -> torch.Tensor:
        return latent_score_loss(self.process, self.score, self.x, self.times(*times), self.z)


def check_per_sample(actual: torch.Tensor, recorded: np.ndarray, tolerance: float, name: str) -> None:
    """Each entry by itself: the losses of a batch differ by orders of magnitude."""
    assert actual.dtype == torch.float64
    np.testing.assert_allclose(actual.numpy(), recorded, rtol=tolerance, atol=0, err_msg=name)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("name", ["ve", "vp"])
def test_losses(name, dtype, tolerance):
    case = Case(name, dtype)
    for reduce_mean, likelihood, importance in product((0, 1), repeat=3):
        weighting = "likelihood" if likelihood else "reweightedv2"
        loss = case.loss(weighting, bool(importance)) / (case.n_dimensions if reduce_mean else 1)
        key = f"{name}/loss/rm{reduce_mean}_lw{likelihood}_is{importance}"
        check_per_sample(loss, case.arrays[f"{key}_f64"], tolerance, key)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("name", ["ve", "vp"])
def test_everything_on_the_way(name, dtype, tolerance):
    case = Case(name, dtype)
    for suffix, importance in (("is", True), ("uniform", False)):
        times = case.times("reweightedv2", importance)
        check_per_sample(times.t, case.arrays[f"{name}/t_{suffix}_f64"], FLOAT64, "t")
        close(times.weight[0], case.arrays[f"{name}/Z_{suffix}_f64"], FLOAT64)
        _, sigma = signal_and_noise_scales(case.process, times.t)
        check_per_sample(sigma, case.arrays[f"{name}/std_{suffix}_f64"], FLOAT64, "std")
        perturbed = perturb_latents(case.process, case.x, case.z, times.t)
        close(perturbed, case.arrays[f"{name}/perturbed_{suffix}_f64"], tolerance)
        close(case.score(perturbed, times.t), case.arrays[f"{name}/score_{suffix}_f64"], tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("name", ["ve", "vp"])
def test_reconstruction_term(name, dtype, tolerance):
    case = Case(name, dtype)
    residual = reconstruction_residual(case.process, case.score, case.x, T_MIN, case.z_recon)
    loss = case.loss("likelihood", True)
    for reduce_mean, scale in ((0, 1), (1, case.n_dimensions)):
        # The squares of the recorded term nearly cancel: it is small against them.
        size = tolerance * case.n_dimensions / scale
        np.testing.assert_allclose(
            residual.numpy() / scale, case.arrays[f"{name}/recon/rm{reduce_mean}_f64"], rtol=0, atol=size
        )
        recorded = case.arrays[f"{name}/loss_with_recon/rm{reduce_mean}_f64"]
        np.testing.assert_allclose((loss + residual).numpy() / scale, recorded, rtol=tolerance, atol=size)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("name", ["ve", "vp"])
def test_soft_truncation(name, dtype, tolerance):
    case = Case(name, dtype)
    smallest = soft_truncated_time(torch.from_numpy(case.arrays["st/u"]), T_MIN, float(case.arrays[f"{name}/st/k"]))
    close(smallest, case.arrays[f"{name}/st/t_min_f64"], FLOAT64)
    times = case.times("likelihood", True, smallest.item())
    check_per_sample(times.t, case.arrays[f"{name}/st/t_f64"], FLOAT64, "t")
    close(times.weight[0], case.arrays[f"{name}/st/Z_f64"], FLOAT64)
    loss = latent_score_loss(case.process, case.score, case.x, times, case.z)
    check_per_sample(loss, case.arrays[f"{name}/st/loss_f64"], tolerance, "loss")
