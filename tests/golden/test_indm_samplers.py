"""Sampling steps and whole samplers of latents against the recorded ones."""

from collections.abc import Callable

import pytest
import torch

from diffusion.continuous.latent_sampling import denoising_step, end_step, reverse_step
from diffusion.continuous.predictor_corrector import reverse_diffusion_step as reverse_diffusion
from diffusion.continuous.prior import prior_sample
from diffusion.tensors import expand
from tests.golden.indm_setup import FLOAT64, Arrays, close, load, make_process, tiny_flow, toy_score
from tests.spelling import (
    InverseSettings,
    denoised_predictor_corrector,
    langevin,
    predictor_corrector,
    probability_flow,
    sample_code,
)

SMALLEST = 1e-5
N_STEPS_OF_SINGLE_STEPS = 1000
SOLVER_TOLERANCE = 1e-5
PRECISIONS = [(torch.float64, FLOAT64), (torch.float32, 3e-4)]
"""All against the recorded float64 numbers, to which a float32 run with schedules in float64 lies nearest."""


class Case:
    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.arrays: Arrays = load("indm", "samplers")
        self.dtype = dtype
        self.process = make_process(name, self.arrays[f"hyper/{name}"])
        score = toy_score(name, self.process, self.tensor(f"score_abc_{name}"))
        self.score = lambda x, t: score(x.to(dtype), t)

    def tensor(self, key: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[key]).to(self.dtype)

    def noises(self, run: str) -> Callable[[], torch.Tensor]:
        """The recorded noise of the steps of a run in the order of use."""
        n_steps = sum(key.startswith(f"{run}/noise/step") for key in self.arrays) // 2
        keys = [f"{run}/noise/step{i}/{part}" for i in range(n_steps) for part in ("corrector", "predictor")]
        return iter([self.tensor(key) for key in keys]).__next__


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("name", ["ve", "vp"])
def test_single_steps(name, dtype, tolerance):
    case = Case(name, dtype)
    times = torch.linspace(1, SMALLEST, N_STEPS_OF_SINGLE_STEPS, dtype=torch.float64)
    for row, index in enumerate(case.arrays["steps/i"]):
        x = case.tensor("steps/x_unit")
        t = times[index].expand(len(x))
        end = (times[index + 1] if index + 1 < len(times) else torch.zeros_like(times[0])).expand(len(x))
        if name == "ve":
            x = x * expand(case.process.kernel_factor(t)[..., 0, 0], x).to(dtype)
        noises = ("corrector", "predictor", "next_t_predictor")
        noise = {key: case.tensor(f"steps/{name}/noise/{key}")[row] for key in noises}
        snr = float(case.arrays["snr/values"][0])
        process, score, n_steps = case.process, case.score, N_STEPS_OF_SINGLE_STEPS
        found = {}
        corrected, found["after_corrector_mean"] = langevin(
            process, score, x, t, [noise["corrector"]], n_steps, snr, published_behaviour=True
        )
        found["after_corrector"] = corrected
        found["after_predictor"], found["after_predictor_mean"] = reverse_diffusion(
            process, score, corrected, t, noise["predictor"], n_steps
        )
        found["next_t_predictor"], found["next_t_predictor_mean"] = reverse_step(
            process, score, corrected, t, end, noise["next_t_predictor"]
        )
        found["pf_predictor"] = denoising_step(process, score, corrected, t, end)
        for key, value in found.items():
            close(value, case.arrays[f"steps/{name}/{key}_f64"][row], tolerance, key)


def test_grids():
    arrays = load("indm", "sde")
    times = torch.linspace(1, SMALLEST, len(arrays["pc/timesteps_f32"]), dtype=torch.float64)
    n_steps = len(times)
    close(times, arrays["pc/timesteps_f32"], 1e-6)
    steps = {name: make_process(name, arrays[f"{name}/params"]).discrete_step(times, n_steps) for name in ("ve", "vp")}
    index = torch.from_numpy(arrays["pc/index_f32"]).long()
    close(steps["vp"].noise ** 2, arrays["vp/discrete_betas_f32"][index], 1e-6)
    sigmas = torch.from_numpy(arrays["ve/discrete_sigmas_f32"]).double()
    before = torch.cat([torch.zeros(1, dtype=torch.float64), sigmas[:-1]])
    close(steps["ve"].noise, (sigmas**2 - before**2).sqrt()[index].numpy(), 1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("run", ["pc_default", "pc_linear_snr", "pc_data_mean_temperature"])
def test_predictor_corrector(run, dtype, tolerance):
    case = Case("ve", dtype)
    n_steps = int(case.arrays["pc/num_steps"])
    constant, begin, end = (float(value) for value in case.arrays["snr/values"])
    snrs = [begin + (end - begin) * i / n_steps if run == "pc_linear_snr" else constant for i in range(n_steps)]
    state = prior_sample(case.process, case.tensor(f"{run}/noise/x_T"))
    if run == "pc_data_mean_temperature":
        state = state + case.tensor("pc/data_mean")
    close(state, case.arrays[f"{run}/x_T_f64"], tolerance)

    x, normal, found = state.double(), case.noises(run), []
    for time, snr in zip(torch.linspace(1, SMALLEST, n_steps, dtype=torch.float64), snrs, strict=True):
        t = time.expand(len(x))
        states = langevin(case.process, case.score, x, t, [normal()], n_steps, snr, published_behaviour=True)
        found.append(states)
        found.append(reverse_diffusion(case.process, case.score, states[0], t, normal(), n_steps))
        x = found[-1][0]
    for (state_after, mean), recorded, recorded_mean in zip(
        found, case.arrays[f"{run}/states_f64"], case.arrays[f"{run}/means_f64"], strict=True
    ):
        close(state_after, recorded, tolerance)
        close(mean, recorded_mean, tolerance)

    latents, n_evaluations = predictor_corrector(
        case.process, case.score, state, predictor="reverse_diffusion", corrector="langevin", n_steps=n_steps, snr=snrs,
        n_corrector_steps=1, sampling_eps=SMALLEST, denoise=True, normal=case.noises(run), published_behaviour=True,
    )  # fmt: skip
    # The temperature comes after what was recorded as the latent.
    close(latents, case.arrays[f"{run}/before_flow_f64"], tolerance)
    assert n_evaluations == case.arrays[f"{run}/nfe_reported_f64"]


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_steps_to_the_next_time(dtype, tolerance):
    case = Case("ve", dtype)
    n_steps = int(case.arrays["pc/num_steps"])
    snr = float(case.arrays["snr/values"][0])
    before_denoising = []
    state = prior_sample(case.process, case.tensor("pc_search/noise/x_T"))
    latents, n_evaluations = denoised_predictor_corrector(
        case.process, case.score, state, n_steps=n_steps, snrs=[snr] * n_steps, sampling_eps=SMALLEST,
        denoise_time=-1.0, normal=case.noises("pc_search"), published_behaviour=True,
        on_step=lambda t, x: before_denoising.append(x),
    )  # fmt: skip
    assert n_evaluations == 2 * (n_steps - 1) + 1
    before = before_denoising[-2]
    close(before, case.arrays["pc_search/before_flow_f64"], tolerance)
    t = torch.full((len(before),), SMALLEST, dtype=torch.float64)
    torch.testing.assert_close(latents, denoising_step(case.process, case.score, before, t, -torch.ones_like(t)))


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize(("label", "end"), [("m1", -1.0), ("0", 0.0), ("5em6", 5e-6)])
def test_denoising(label, end, dtype, tolerance):
    case = Case("ve", dtype)
    x = case.tensor("pc_denoise/before_data")
    t = torch.full((len(x),), SMALLEST, dtype=torch.float64)
    latents = denoising_step(case.process, case.score, x, t, torch.full_like(t, end))
    close(latents, case.arrays[f"pc_denoise/time_{label}/before_flow_f64"], tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("run", ["ode", "ode_temperature"])
def test_probability_flow(run, dtype, tolerance):
    case = Case("vp", dtype)
    common = {"sampling_eps": SMALLEST, "solver": "RK45", "rtol": SOLVER_TOLERANCE, "atol": SOLVER_TOLERANCE}
    start = prior_sample(case.process, case.tensor(f"{run}/noise/x_T"))
    latents, n_evaluations = probability_flow(case.process, case.score, start, denoise=False, **common)
    # At a float32 network the step control reacts to rounding.
    close(latents, case.arrays[f"{run}/before_denoise_f64"], max(tolerance, 5e-4 if dtype == torch.float32 else 0.0))
    denoised = end_step(case.process, case.score, latents, SMALLEST)
    close(denoised, case.arrays[f"{run}/latent_denoised_f64"], max(tolerance, 5e-4 if dtype == torch.float32 else 0.0))
    close((denoised + 1) / 2, case.arrays[f"{run}/before_flow_f64"], 5e-4 if dtype == torch.float32 else tolerance)
    recorded = case.arrays[f"{run}/nfe_f64"]
    assert abs(n_evaluations - recorded) <= (0 if dtype == torch.float64 else 0.1 * recorded)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize(
    "run", ["pc_default", "pc_linear_snr", "pc_data_mean_temperature", "pc_denoise/time_m1", "pc_denoise/time_0",
            "pc_denoise/time_5em6", "ode", "ode_temperature"],
)  # fmt: skip
def test_from_latents_to_data(run, dtype, tolerance):
    """The recorded codes went through the stale inverse of the prior flow, the latents through the public inverse."""
    name = "vp" if run.startswith("ode") else "ve"
    case = Case(name, dtype)
    flow = tiny_flow(case.arrays, dtype).eval()
    codes = sample_code(flow, case.tensor(f"{run}/noise/h_eps"), published_behaviour=True)
    if f"{run}/h_f64" in case.arrays:
        close(codes, case.arrays[f"{run}/h_f64"], tolerance)
    latents = case.tensor(f"{run}/before_flow_f64")
    if name == "vp":
        latents = 2 * latents - 1
    if run.endswith("temperature"):
        latents = float(case.arrays["temperature"]) * latents
    data = flow.inverse(latents, codes, InverseSettings(published_behaviour=True))
    if name == "vp":
        data = (data + 1) / 2
    # The rule stops all samples together, one update sooner or later where rounding decides.
    close(data, case.arrays[f"{run}/after_flow_f64"], tolerance if dtype == torch.float64 else 3e-3)
