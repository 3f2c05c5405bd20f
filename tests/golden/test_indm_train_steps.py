"""Training steps of flow and score network against the recorded ones, two in a row."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

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
from trainers.indm.joint_step import Draws, JointObjective, JointStep
from trainers.update import Updater
from util.distributed import Distributed
from util.ema import ExponentialMovingAverage
from util.optimization import make_optimizer

CASES = ["ve_nll", "vp_nll", "vp_fid", "ve_nll_st", "vp_fid_st"]
# Of losses and gradients: those of the second step follow an update whose size does not depend on that of the gradient.
PRECISIONS = [(torch.float64, FLOAT64), (torch.float32, 4e-3)]


class ToyNetwork(nn.Module):
    def __init__(self, abc: np.ndarray, dtype: torch.dtype) -> None:
        super().__init__()
        self.abc = nn.Parameter(torch.from_numpy(abc).to(dtype))


class Spy:
    """Keeps what goes through the objective, and gradients before they are clipped."""

    def __init__(self) -> None:
        self.terms: list[dict[str, torch.Tensor]] = []
        self.score_losses: list[torch.Tensor] = []
        self.latents: list[torch.Tensor] = []
        self.smallest_times: list[float] = []
        self.kl: list[torch.Tensor] = []
        self.gradients: dict[str, dict[str, torch.Tensor]] = {}


class RecordingObjective(JointObjective):
    spy: Spy

    def score_loss(self, score, latents, draws, smallest_time, importance_sampling):
        loss = super().score_loss(score, latents, draws, smallest_time, importance_sampling)
        self.spy.score_losses.append(loss.detach())
        self.spy.latents.append(latents.detach())
        self.spy.smallest_times.append(smallest_time)
        return loss

    def terms(self, score, encoded, draws, smallest_time, importance_sampling):
        terms = super().terms(score, encoded, draws, smallest_time, importance_sampling)
        self.spy.terms.append({name: term.detach() for name, term in terms.items()})
        self.spy.kl.append(encoded.kl.detach())
        return terms


def hyper(arrays: Arrays, name: str) -> float:
    return float(arrays[f"hyper/{name}"])


def make_updater(network: nn.Module, arrays: Arrays, name: str, spy: Spy) -> Updater:
    optimizer = make_optimizer(
        "AdamW", network.parameters(), hyper(arrays, f"lr_{name}"), hyper(arrays, "weight_decay"),
        betas=(hyper(arrays, "beta1"), hyper(arrays, "beta2")), eps=hyper(arrays, "adam_eps"),
    )  # fmt: skip
    ema = ExponentialMovingAverage(network.named_parameters(), hyper(arrays, f"ema_{name}"))

    class SpyingUpdater(Updater):
        def apply(self, step, scaler=None):
            spy.gradients[name] = {
                key: p.grad.detach().clone() for key, p in self.network.named_parameters() if p.grad is not None
            }
            return super().apply(step, scaler)

    return SpyingUpdater(network, optimizer, ema, lambda step: hyper(arrays, f"lr_{name}"), hyper(arrays, "grad_clip"))


class Run:
    def __init__(self, case: str, dtype: torch.dtype) -> None:
        self.arrays = arrays = load("indm", f"train_step_{case}")
        self.dtype = dtype
        name, self.step_function = case.split("_")[:2]
        process = make_process(name, arrays["hyper/sde_params"])
        self.network = ToyNetwork(arrays["score_abc"], dtype)
        self.flow = tiny_flow(arrays, dtype)
        self.spy = Spy()
        objective = RecordingObjective(
            process,
            "likelihood" if hyper(arrays, "likelihood_weighting") else "reweightedv2",
            bool(hyper(arrays, "importance_sampling")),
            hyper(arrays, "t_min"),
            bool(hyper(arrays, "reduce_mean")),
            bool(hyper(arrays, "reconstruction_loss")),
            True,
        )
        object.__setattr__(objective, "spy", self.spy)
        self.soft_truncation = hyper(arrays, "k") if hyper(arrays, "st") else None
        self.score_updater = make_updater(self.network, arrays, "score", self.spy)
        self.flow_updater = make_updater(self.flow, arrays, "flow", self.spy)
        self.step = JointStep(
            objective,
            lambda y, t: toy_score(name, process, self.network.abc)(y, t),
            self.flow,
            self.score_updater,
            self.flow_updater,
            Distributed(),
            step_function=self.step_function,
            soft_truncation=self.soft_truncation,
            scaler=None,
        )
        self.centred = name == "vp"

    def take(self, number: int) -> dict[str, torch.Tensor]:
        arrays = self.arrays
        prefix = f"step{number}/"
        recorded = partial(self._recorded, f"{prefix}noise/")
        pixels = torch.from_numpy(arrays[f"{prefix}in/img_uint8"]).to(self.dtype)
        x = (pixels + torch.from_numpy(arrays[f"{prefix}in/u_dequant"]).to(self.dtype)) / 256
        own, shared = flow_noise(arrays, f"{prefix}noise/")
        own += [*recorded("u_time"), *recorded("z_time"), *recorded("z_T"), *recorded("h_eps_second_pass")]
        own += [*recorded("u_time_second_pass"), *recorded("z_time_second_pass")]
        shared += [value[None] for value in recorded("u_soft_truncation")]
        draws = Draws(RecordedNoise(own, self.dtype), RecordedNoise(shared, torch.float64))
        metrics = self.step([(2 * x - 1 if self.centred else x, draws)], number - 1, len(x))
        assert not draws.noise.values
        assert not draws.shared.values
        return metrics

    def _recorded(self, prefix: str, name: str) -> list[torch.Tensor]:
        if f"{prefix}{name}" not in self.arrays:
            return []
        value = torch.from_numpy(self.arrays[f"{prefix}{name}"])
        return [value.flatten(1) if name.startswith("h_eps") else value]


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("case", CASES)
def test_two_steps(case, dtype, tolerance):
    run = Run(case, dtype)
    arrays, spy = run.arrays, run.spy
    for number in (1, 2):
        spy.__init__()
        metrics = run.take(number)

        def check(key: str, value: torch.Tensor, number: int = number) -> None:
            close(value, arrays[f"step{number}/{key}_f64"], tolerance, key)

        terms = spy.terms[0]
        check("loss_flow", terms["flow"])
        check("loss_logp", terms["prior"])
        check("kl_h", spy.kl[0])
        check("flow_objective_score_term", terms["score"])
        check("loss_total", sum(terms.values()))
        check("loss_score", spy.score_losses[-1])
        check("t_min", torch.tensor(spy.smallest_times[0], dtype=torch.float64))
        if run.step_function == "fid":
            check("score_pass_z_latent", spy.latents[1])
            check("t_min_score_pass", torch.tensor(spy.smallest_times[1], dtype=torch.float64))
        check("grad_score_abc", spy.gradients["score"]["abc"])
        check("grad_norm_score", metrics["gradient_norm"])
        check("grad_norm_flow", metrics["gradient_norm_flow"])
        close(metrics["loss"], arrays[f"step{number}/loss_total_f64"].mean(), tolerance)
        for key in arrays:
            if key.startswith(f"step{number}/grad_flow/") and key.endswith("_f64"):
                name = key.removeprefix(f"step{number}/grad_flow/").removesuffix("_f64")
                close(spy.gradients["flow"][name], arrays[key], tolerance, key)
        if dtype == torch.float64:
            check("score_abc_after", run.network.abc)
            check("score_abc_ema_after", run.score_updater.ema.shadow["abc"])
    if dtype == torch.float64:
        found = {
            "param_after": dict(run.flow.named_parameters()),
            "buffer_after": dict(run.flow.named_buffers()),
            "ema_after": run.flow_updater.ema.shadow,
        }
        for key in arrays:
            kind, _, name = key.removeprefix("step2/").partition("/")
            if kind in found:
                close(found[kind][name.removesuffix("_f64")], arrays[key], tolerance, key)
