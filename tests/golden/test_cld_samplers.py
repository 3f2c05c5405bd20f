"""Samplers against recorded trajectories, driven by the recorded noise."""

import math

import numpy as np
import pytest
import torch

from diffusion.continuous.prior import prior_sample
from diffusion.continuous.process import split
from diffusion.continuous.reverse import reverse_diffusion
from diffusion.continuous.samplers import Step
from diffusion.continuous.score import make_score
from tests.golden.cld_setup import Comparison, PointwiseNetwork, make_process, runs
from tests.golden.vectors import load
from tests.spelling import euler_maruyama, probability_flow, sscs

TOLERANCE = 1e-5
FLOAT64 = 1e-12
# What "tight" in the name of a variant stands for.
TIGHT = 1e-9


class Run:
    """Process, network, score and start of one recorded variant, and the comparison with it."""

    def __init__(self, file: str, variant: str) -> None:
        self.arrays = load("cld", file)
        self.words = set(variant.split("_"))
        self.process = make_process(self.arrays)
        parameterisation = "mixed" if "mixed" in self.words else "plain"
        self.network = PointwiseNetwork(self.arrays, f"net_{parameterisation}")
        self.score = make_score(self.process, self.network, mixed=parameterisation == "mixed")
        draws = [self.arrays[key] for key in ("prior/zx", "prior/zv") if key in self.arrays]
        self.start = prior_sample(self.process, torch.from_numpy(np.concatenate(draws, axis=1)))
        self.comparison = Comparison(self.arrays, f"{variant}/")
        self.steps: list[Step] = []
        self.sampling_eps = float(self.arrays["hp/sampling_eps"])
        self.denoise = "denoise" in self.words

    def fixed_step_options(self) -> dict:
        noise = iter(torch.from_numpy(self.arrays["noise"]))
        return {
            "n_evaluations": int(self.arrays["hp/n_discrete_steps"]),
            "sampling_eps": self.sampling_eps,
            "striding": "linear" if "linear" in self.words else "quadratic",
            "denoise": self.denoise,
            "normal": lambda: next(noise),
            "on_step": self.steps.append,
        }

    def ode_options(self) -> dict:
        tolerances = (
            [TIGHT] * 2 if "tight" in self.words else [self.arrays["hp/rtol"], self.arrays["hp/atol"]]
        )
        rtol, atol = map(float, tolerances)
        return {"sampling_eps": self.sampling_eps, "denoise": self.denoise, "rtol": rtol, "atol": atol}

    def compare_end(self, state: torch.Tensor) -> None:
        for name, component in zip("xv", split(self.process, state), strict=False):
            self.comparison.close(name, component, TOLERANCE)


@pytest.mark.parametrize(
    "file", sorted({run[0] for run in runs("sampler_em_cld", "sampler_em_vpsde", "sampler_toy_cld")})
)
def test_prior(file):
    arrays = load("cld", file)
    draws = [arrays[key] for key in ("prior/zx", "prior/zv") if key in arrays]
    process = make_process(arrays)
    start = prior_sample(process, torch.from_numpy(np.concatenate(draws, axis=1)))
    comparison = Comparison(arrays, "prior/")
    for name, component in zip("xv", split(process, start), strict=False):
        comparison.relative(name, component, 1e-6)
    comparison.nothing_left("zx", "zv")


EULER_MARUYAMA_RUNS = [
    (file, variant)
    for file, variant, _ in runs("sampler_em_cld", "sampler_em_vpsde", "sampler_toy_cld")
    if "toy" not in file or variant.startswith("em_")
]


@pytest.mark.parametrize(("file", "variant"), EULER_MARUYAMA_RUNS)
def test_euler_maruyama(file, variant):
    run = Run(file, variant)
    state, n_evaluations = euler_maruyama(run.process, run.score, run.start, **run.fixed_step_options())

    run.compare_end(state)
    run.comparison.equal("nfe", n_evaluations)
    run.comparison.close("step_t", [step.tau for step in run.steps], FLOAT64)
    run.comparison.relative("step_dt", [step.size for step in run.steps], 1e-9)
    run.comparison.relative("net_t", run.network.times, 1e-6)
    trajectory = [run.start, *(step.stages["end"] for step in run.steps)]
    means = [step.stages.get("mean", step.stages["end"]) for step in run.steps]
    run.comparison.close("traj_u_mean", torch.stack(means), TOLERANCE)
    if run.denoise:
        # The file has the noise of the denoising step, too, which nothing uses.
        times = torch.full((len(state),), run.steps[-1].tau, dtype=torch.float64)
        unused = torch.from_numpy(run.arrays["noise"][len(run.steps) - 1])
        root = math.sqrt(run.sampling_eps)
        trajectory[-1] = state + reverse_diffusion(run.process, state, times) * root * unused
    run.comparison.close("traj_u", torch.stack([u.double() for u in trajectory]), TOLERANCE)
    run.comparison.nothing_left()


def sscs_runs():
    for file, variant, published_behaviour in runs("sampler_sscs_cld", "sampler_toy_cld"):
        if "toy" in file and not variant.startswith("sscs_"):
            continue
        yield file, variant, published_behaviour
        if published_behaviour and load("cld", file)["hp/beta1"] == 0:
            yield file, variant, False


@pytest.mark.parametrize(("file", "variant", "published_behaviour"), list(sscs_runs()))
def test_sscs(file, variant, published_behaviour):
    run = Run(file, variant)
    state, n_evaluations = sscs(
        run.process,
        run.score,
        run.start,
        published_behaviour=published_behaviour,
        **run.fixed_step_options(),
    )

    run.compare_end(state)
    run.comparison.equal("nfe", n_evaluations)
    run.comparison.relative("net_t", run.network.times, 1e-6)
    full_steps = run.steps[: n_evaluations - run.denoise]
    ends = [run.start.double(), *(step.stages["end"] for step in full_steps)]
    run.comparison.close("state_before_half1", torch.stack(ends[:-1]), TOLERANCE)
    for name, stage in (("state_after_half1", "first_half"), ("state_after_score", "score")):
        run.comparison.close(name, torch.stack([step.stages[stage] for step in full_steps]), TOLERANCE)
    if run.denoise:
        run.comparison.close("state_final_before_denoise", ends[-1], TOLERANCE)
    run.comparison.nothing_left()


ODE_RUNS = [
    (file, variant, published_behaviour)
    for file, variant, published_behaviour in runs("sampler_ode_cld", "sampler_ode_vpsde", "sampler_toy_cld")
    if "toy" not in file or variant.startswith("ode_")
]


@pytest.mark.parametrize(("file", "variant", "published_behaviour"), ODE_RUNS)
def test_probability_flow(file, variant, published_behaviour):
    run = Run(file, variant)
    options = {**run.ode_options(), "solver": "RK45", "published_behaviour": published_behaviour}
    state, n_evaluations = probability_flow(run.process, run.score, run.start, **options)

    run.compare_end(state)
    if "tight" in run.words:
        # At this tolerance the step control reacts to the rounding of float32 alone.
        run.comparison.remaining.discard(f"{variant}/nfe")
    else:
        run.comparison.equal("nfe", n_evaluations)
    if run.denoise:
        before, _ = probability_flow(run.process, run.score, run.start, **{**options, "denoise": False})
        run.comparison.close("state_before_denoise", before, TOLERANCE)
    run.comparison.nothing_left()


@pytest.mark.parametrize("solver", ["RK45", "scipy_solver", "dopri5"])
@pytest.mark.parametrize(("file", "variant"), [run[:2] for run in ODE_RUNS if "tight" in run[1]])
def test_probability_flow_in_float64_agrees_with_the_tight_solution(file, variant, solver):
    run = Run(file, variant)
    # The float32 network leaves nothing to gain below this tolerance.
    options = {**run.ode_options(), "solver": solver, "rtol": 1e-8, "atol": 1e-8}
    state, _ = probability_flow(run.process, run.score, run.start, **options)
    run.compare_end(state)
