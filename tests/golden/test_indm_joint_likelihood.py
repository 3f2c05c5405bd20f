"""Likelihoods of the joint model against the recorded ones: the flow's part, the diffusion's, and bits/dim of both."""

import numpy as np
import pytest
import torch

from diffusion.bits import PixelScale, in_bits_per_dimension
from diffusion.continuous.latent_loss import (
    end_log_density,
    implicit_bound_terms,
    perturb_latents,
    reconstruction_residual,
)
from models.residual_flow import draw_flow_noise
from tests.golden.indm_setup import (
    FLOAT64,
    Arrays,
    RecordedNoise,
    close,
    flow_noise,
    load,
    make_process,
    tiny_flow,
    toy_score,
)
from tests.spelling import ode_log_likelihood, weighted_times

SOLVER_TOLERANCE = 1e-5
# The float32 runs have schedules in float64 and so lie near the recorded float64 numbers.
PRECISIONS = [(torch.float64, FLOAT64), (torch.float32, 5e-4)]


class Case:
    def __init__(self, name: str, run: str, dtype: torch.dtype) -> None:
        self.arrays: Arrays = load("indm", "joint_likelihood")
        self.name, self.run, self.dtype = name, run, dtype
        self.process = make_process(name, self.arrays[f"{name}/params"])
        abc = torch.from_numpy(self.arrays[f"{name}/score_abc"]).to(dtype)
        score = toy_score(name, self.process, abc)
        self.score = lambda x, t: score(x.to(dtype), t)
        self.smallest = float(self.arrays[f"{name}/eps_bpd"])
        self.scale = PixelScale(centered=bool(self.arrays[f"{name}/centered"]))
        flow = tiny_flow(self.arrays, dtype).eval()
        x = self.tensor("in/img_uint8") + self.tensor("in/u_dequant")
        x = 2 * x / 256 - 1 if self.scale.centered else x / 256
        own, shared = flow_noise(self.arrays, f"{name}/{run}/noise/")
        drawn = draw_flow_noise(flow, RecordedNoise(own, dtype), RecordedNoise(shared, torch.float64), dtype=dtype)
        with torch.no_grad():
            self.encoded = flow(x, drawn, "series")
        self.latents = self.encoded.z

    def tensor(self, key: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[f"{self.name}/{key}"]).to(self.dtype)

    def check_flow(self, tolerance: float) -> None:
        close(self.latents, self.recorded("z_latent"), tolerance)
        close(self.encoded.log_jacobian, self.recorded("log_jacob"), tolerance)
        close(self.encoded.kl, self.recorded("kl_h"), tolerance)

    def bits(self, diffusion: list[torch.Tensor]) -> torch.Tensor:
        """Bits/dim of the parts of -log p(z)."""
        terms = {"flow": -self.encoded.log_jacobian, **{str(i): term for i, term in enumerate(diffusion)}}
        return sum(in_bits_per_dimension(terms, self.latents[0].numel(), self.scale).values())

    def noise(self, key: str) -> torch.Tensor:
        return self.tensor(f"{self.run}/noise/{key}")

    def probe(self) -> torch.Tensor:
        return 2 * self.noise("hutchinson") - 1

    def recorded(self, key: str) -> np.ndarray:
        return self.arrays[f"{self.name}/{self.run}/{key}_f64"]

    def check_residual(self, tolerance: float) -> torch.Tensor:
        residual = reconstruction_residual(
            self.process, self.score, self.latents, self.smallest,
            self.noise("z_residual_point"), self.noise("z_residual_score"),
        )  # fmt: skip
        # The recorded number is the difference of two that are as large as this one.
        size = np.abs(self.recorded("residual_p_entropy")).max()
        np.testing.assert_allclose(residual.numpy(), self.recorded("residual_nll"), rtol=0, atol=tolerance * size)
        return residual


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("name", ["ve", "vp"])
def test_bound(name, dtype, tolerance):
    case = Case(name, "nelbo", dtype)
    uniform = torch.from_numpy(case.arrays[f"{name}/nelbo/noise/u_time"])
    times = weighted_times(case.process, uniform, case.smallest, weighting="likelihood", importance_sampling=True)
    close(times.t, case.recorded("t"), FLOAT64)
    close(times.weight[0], case.recorded("Z"), FLOAT64)
    terms = implicit_bound_terms(case.process, case.score, case.latents, times, case.noise("z_time"), case.probe())
    close(-terms["score_divergence"], case.recorded("Mu"), tolerance)
    close(-terms["score_norm"], case.recorded("Nu"), tolerance)
    prior = end_log_density(case.process, case.latents, case.noise("z_T"))
    close(prior, case.recorded("prior_logp"), tolerance)
    case.check_flow(tolerance)
    close(case.encoded.log_determinants.sum(1), case.recorded("logdet_est"), tolerance)
    close(case.scale.offset, case.recorded("offset_bits"), FLOAT64)
    terms = [*terms.values(), -prior]
    close(case.encoded.log_jacobian - sum(terms), case.recorded("elbo_nats"), tolerance)
    close(case.bits(terms), case.recorded("bpd_without_residual"), tolerance)
    close(case.bits([*terms, case.check_residual(tolerance)]), case.recorded("bpd_with_residual"), tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("run", ["nll_without_residual", "nll_with_residual"])
@pytest.mark.parametrize("name", ["ve", "vp"])
def test_probability_flow(name, run, dtype, tolerance):
    case = Case(name, run, dtype)
    case.check_flow(tolerance)
    start, residual = case.latents, torch.zeros(len(case.latents), dtype=torch.float64)
    if run == "nll_with_residual":
        t = torch.full((len(start),), case.smallest, dtype=torch.float64)
        start = perturb_latents(case.process, start, case.noise("z_start"), t)
        close(start, case.recorded("x_start"), tolerance)
        residual = case.check_residual(tolerance)
    result = ode_log_likelihood(
        case.process, case.score, start, case.probe(), start=case.smallest, solver="RK45",
        rtol=SOLVER_TOLERANCE, atol=SOLVER_TOLERANCE,
    )  # fmt: skip
    recorded = case.recorded("nfe")
    assert abs(result.n_evaluations - recorded) <= (0 if dtype == torch.float64 else 0.1 * recorded)
    tolerance = tolerance if dtype == torch.float64 else 5e-4
    close(result.final_state, case.recorded("z_T"), tolerance)
    close(result.divergence, case.recorded("delta_logp_ode"), tolerance)
    close(result.prior["x"], case.recorded("prior_logp"), tolerance)
    close(case.bits([-result.log_density, residual]), case.recorded("bpd"), tolerance)
