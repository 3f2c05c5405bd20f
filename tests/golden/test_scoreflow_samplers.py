"""Predictors, correctors, whole predictor-corrector runs and the ODE sampler."""

import numpy as np
import pytest
import torch

from diffusion.continuous.chain import grid_index
from diffusion.continuous.predictor_corrector import PREDICTORS
from diffusion.continuous.predictor_corrector import denoising_chain_step as denoise
from diffusion.continuous.prior import prior_sample
from diffusion.tensors import expand
from tests.golden.scoreflow_setup import LOOSE_TOLERANCES, TOLERANCES, comparison, make_process, toy_score
from tests.golden.vectors import load
from tests.spelling import CORRECTORS, predictor_corrector, probability_flow

ARRAYS = load("scoreflow", "samplers")
NAMES = sorted({key.split("/")[0] for key in ARRAYS if key.endswith("/pc/N")})
N_STEPS = 1000
"""Steps of the chain where a file gives no other number."""


def input_of(key: str) -> torch.Tensor:
    return torch.from_numpy(ARRAYS[key]).double()


def setting(name: str, precision: str):
    process = make_process(ARRAYS, name, linearised_start=False, prefix="in")
    return process, toy_score(ARRAYS, process, precision), comparison(ARRAYS, precision, name)


def complete_runs(name: str) -> list[str]:
    return sorted({key.split("/")[3] for key in ARRAYS if key.startswith(f"f64/{name}/pc/") and "+" in key})


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("name", NAMES)
def test_single_steps(name, precision):
    process, score, recorded = setting(name, precision)
    x, t, z, tolerance = input_of(f"{name}/x"), input_of("in/t"), input_of("in/z"), LOOSE_TOLERANCES[precision]
    step = process.discrete_step(t, N_STEPS)
    recorded.close("pred/discretize_f", expand(step.growth, x) * x, tolerance)
    recorded.close("pred/discretize_G", step.noise, tolerance)
    for predictor in ("euler_maruyama", "reverse_diffusion", "ancestral_sampling"):
        if f"f64/{name}/pred/{predictor}/x" in ARRAYS:
            end, mean = PREDICTORS[predictor](process, score, x, t, z, N_STEPS)
            recorded.close(f"pred/{predictor}/x", end, tolerance)
            recorded.close(f"pred/{predictor}/x_mean", mean, tolerance)
    end, mean = PREDICTORS["probability_flow"](process, score, x, t, z, N_STEPS)
    recorded.close("pred/reverse_diffusion_probflow/x", end, tolerance)
    assert torch.equal(end, mean)
    for key in [key for key in ARRAYS if key.startswith(f"f64/{name}/corr/") and key.endswith("/x")]:
        group = key.split("/")[3]
        corrector, n_corrector_steps = group.split("_n")
        noises = list(input_of("in/z_corr")[: int(n_corrector_steps)])
        end, mean = CORRECTORS[corrector](
            process, score, x, t, noises, N_STEPS, float(ARRAYS["in/snr"]), published_behaviour=True
        )
        recorded.close(f"corr/{group}/x", end, tolerance)
        recorded.close(f"corr/{group}/x_mean", mean, tolerance)
    left = {key.removeprefix(recorded.prefix) for key in recorded.remaining}
    assert all(key.startswith(("pc/", "ode/")) for key in left)


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize(("name", "run"), [(name, run) for name in NAMES for run in complete_runs(name)])
def test_predictor_corrector_runs(name, run, precision):
    process, score, recorded = setting(name, precision)
    predictor, corrector = run.split("+")
    n_steps, eps = int(ARRAYS[f"{name}/pc/N"]), float(ARRAYS[f"{name}/pc/eps"])
    present = [place for place, part in ((0, corrector), (1, predictor)) if part != "none"]
    for without_noise in (True, False):
        noises = iter(input_of(f"{name}/pc/noise")[:, present].flatten(0, 1))
        sample, n_evaluations = predictor_corrector(
            process,
            score,
            prior_sample(process, input_of(f"{name}/pc/prior_noise")),
            predictor=predictor,
            corrector=corrector,
            n_steps=n_steps,
            snr=float(ARRAYS["in/snr"]),
            n_corrector_steps=1,
            sampling_eps=eps,
            denoise=without_noise,
            normal=lambda noises=noises: next(noises),
            published_behaviour=True,
        )
        assert next(noises, None) is None
        data = sample if name.startswith("ve") else (sample + 1) / 2
        recorded.close(f"pc/{run}/denoise{int(without_noise)}", data, TOLERANCES[precision])
        recorded.equal(f"pc/{run}/nfe_reported", n_evaluations)


@pytest.mark.parametrize("name", NAMES)
def test_times_and_their_indices(name):
    recorded = comparison(ARRAYS, "f64", name)
    n_steps, eps = int(ARRAYS[f"{name}/pc/N"]), float(ARRAYS[f"{name}/pc/eps"])
    times = torch.linspace(1, eps, n_steps, dtype=torch.float64)
    recorded.close("pc/timesteps", times, 1e-6)
    np.testing.assert_array_equal(grid_index(times, n_steps).numpy(), ARRAYS[f"f64/{name}/pc/step_index"])


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("name", NAMES)
def test_ode_sampler(name, precision):
    process, score, recorded = setting(name, precision)
    eps = float(ARRAYS[f"{name}/ode/eps"])
    state, n_evaluations = probability_flow(
        process, score, input_of(f"{name}/ode/z"),
        sampling_eps=eps, denoise=False, solver="RK45", rtol=1e-5, atol=1e-5,
    )  # fmt: skip
    tolerance = TOLERANCES["f32"] if precision == "f32" else 1e-6
    for key, sample in ((0, state), (1, denoise(process, score, state, eps))):
        data = sample if name.startswith("ve") else (sample + 1) / 2
        recorded.close(f"ode/denoise{key}", data, tolerance)
    if precision == "f64":  # step sizes follow the rounding
        recorded.equal("ode/nfe", n_evaluations)
