"""The whole evaluator on Gaussian points, with the exact score in place of the network."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion.continuous.gaussian import GaussianData
from evaluators.evaluate import EvaluationSettings, run_evaluations
from main import parse_config
from trainers.cld.method import ScoreMatching
from util.distributed import Distributed
from util.noise import Noise

DATA = GaussianData(torch.tensor([0.3, -0.2]).double(), torch.tensor([[0.20, 0.05], [0.05, 0.10]]).double())
N_ITEMS = 4_000


class GaussianPoints:
    """Endless draws of DATA."""

    name, shape, is_image, length = "gaussian", (2,), False, None

    def read(self, indices: np.ndarray) -> torch.Tensor:
        return DATA.sample(Noise(0, "test points", torch.from_numpy(np.asarray(indices))).normal(2)).float()


def exact_method(*options: str) -> ScoreMatching:
    small = "--workdir w --is_image false --name mlp --dataset diamond --n_hidden 4 --n_layers 1 --numerical_eps 0"
    argv = small.split(" ")
    config = parse_config([*argv, *options])
    config = config.with_values(total_batch_size=1)
    method = ScoreMatching(config, Distributed())
    score = DATA.score(method.process)
    method.precisions = replace(method.precisions, exact=score, sampling=score)
    return method


def evaluate(method: ScoreMatching, folder: Path, **settings) -> dict:
    points = GaussianPoints()
    settings = EvaluationSettings(seed=4, testing_batch_size=1_000, sampling_batch_size=5_000, **settings)
    return run_evaluations(method, points, points, settings, folder, Distributed(), lambda: False, 1, "exact")


@pytest.mark.slow
@pytest.mark.parametrize("sde", ["cld", "vpsde"])
def test_likelihood_is_the_entropy(sde: str, tmp_path: Path) -> None:
    betas = ["--beta0", "4"] if sde == "cld" else ["--beta0", "0.1", "--beta1", "19.9"]
    method = exact_method(
        "--sde",
        sde,
        *betas,
        "--likelihood_rtol",
        "1e-4",
        "--likelihood_atol",
        "1e-4",
        "--likelihood_hutchinson_type",
        "exact",
    )
    entry = evaluate(method, tmp_path, eval_likelihood=True, n_test_items=N_ITEMS)
    result = entry["nelbo" if sde == "cld" else "negative_log_likelihood"]
    # What chance makes of the same draws: their mean is known, so the data's own scatter can be taken out.
    indices = np.arange(N_ITEMS)
    scatter = -DATA.log_density(GaussianPoints().read(indices)).mean().item() - DATA.entropy
    if sde == "cld":
        velocity_noise = Noise(4, "evaluate likelihood", torch.from_numpy(indices)).normal(2).double()
        scatter += (velocity_noise.square().sum(1).mean().item() - 2) / 2
    assert result["value"] - scatter == pytest.approx(DATA.entropy, abs=0.01)
    assert result["value"] == pytest.approx(DATA.entropy, abs=4 * result["standard_error"])


@pytest.mark.slow
@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_trace_estimates_are_right_on_average(probe: str, tmp_path: Path) -> None:
    method = exact_method(
        "--likelihood_rtol", "1e-3", "--likelihood_atol", "1e-3", "--likelihood_hutchinson_type", probe
    )
    result = evaluate(method, tmp_path, eval_likelihood=True, n_test_items=N_ITEMS)["nelbo"]
    assert result["value"] == pytest.approx(DATA.entropy, abs=4 * result["standard_error"])
    assert result["standard_error"] < 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sde", "sampler", "steps"),
    [("cld", "ode", 0), ("cld", "em", 400), ("cld", "sscs", 200), ("vpsde", "ode", 0), ("vpsde", "em", 400)],
)
def test_samples_have_the_mean_and_covariance_of_the_data(sde: str, sampler: str, steps: int, tmp_path: Path) -> None:
    betas = ["--beta0", "4"] if sde == "cld" else ["--beta0", "0.1", "--beta1", "19.9"]
    options = ["--sde", sde, *betas, "--sampling_method", sampler]
    if steps:
        options += ["--n_discrete_steps", str(steps), "--striding", "quadratic"]
    n = 20_000
    evaluate(exact_method(*options), tmp_path, eval_sample=True, n_samples=n)
    points = np.load(tmp_path / "samples.npz")["samples"].astype(np.float64)
    assert points.shape == (n, 2)
    deviation = np.sqrt(np.diag(DATA.covariance.numpy()))
    # Five standard errors, and what so many steps leave: two per cent.
    tolerance = 5 / math.sqrt(n) + 0.02
    assert np.abs((points.mean(0) - DATA.mean.numpy()) / deviation).max() < tolerance
    error = (np.cov(points.T) - DATA.covariance.numpy()) / np.outer(deviation, deviation)
    assert np.abs(error).max() < tolerance * math.sqrt(2)
