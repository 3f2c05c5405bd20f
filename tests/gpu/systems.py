"""Small models of every system, on whichever device, with the batches that they learn from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from main import parse_config
from tests.gpu.pretended import host
from trainers.method import Method
from trainers.options import TrainingOptions
from trainers.step import TrainingStep
from trainers.systems import build_method
from util.config import Config
from util.data.loader import MicroBatch
from util.data.options import DataOptions
from util.distributed import Distributed
from util.noise import Noise
from util.run_options import RunOptions

COMMON = "--total_batch_size 4 --gradient_accumulation 2 --n_warmup_iters 2 --seed 3"
FIVE_STEPS = "--n_discrete_steps 5"
ONE_STEP = "--likelihood_solver rk4 --likelihood_n_steps 1"
QUICK_ODE = "--likelihood_rtol 1e-2 --likelihood_atol 1e-2"
TWO_STEPS_OF_SAMPLING = "--sampling_solver rk4 --sampling_n_steps 2"
SETTINGS = {
    "cld": f"-cc configs/smoke/tiny.txt {FIVE_STEPS} {ONE_STEP}",
    "cld dsm": f"-cc configs/smoke/tiny.txt --cld_objective dsm --sampling_method em {FIVE_STEPS} {ONE_STEP}",
    "cld on points": f"-cc configs/smoke/diamond.txt {FIVE_STEPS} {QUICK_ODE}",
    "scoreflow": f"-cc configs/smoke/scoreflow_vp.txt --corrector ald --bound_n_times 3 {FIVE_STEPS} {ONE_STEP}",
    "scoreflow sub-vp": "-cc configs/smoke/scoreflow_subvp.txt --corrector ald --bound_n_times 3 "
    f"{FIVE_STEPS} {ONE_STEP}",
    "idode": f"-cc configs/smoke/idode_sp.txt --sampling_rtol 1e-1 --sampling_atol 1e-1 {ONE_STEP}",
    "idode second order": "-cc configs/smoke/idode_vp.txt --second_order true --augmentation true "
    f"{ONE_STEP} {TWO_STEPS_OF_SAMPLING}",
    "ddpm": f"-cc configs/smoke/ddpm.txt --bound_n_labels 5 {FIVE_STEPS}",
    "ddpm by ddim": f"-cc configs/smoke/ddpm.txt --bound_n_labels 5 --sampling_method ddim --ddim_eta 0.5 {FIVE_STEPS}",
    "hsivi": "-cc configs/smoke/hsivi.txt --pretrained_model teacher.pth --f_learning_times 2",
    "indm": f"-cc configs/smoke/indm_vp_nll.txt {ONE_STEP} {TWO_STEPS_OF_SAMPLING}",
    "indm fid": f"-cc configs/smoke/indm_ve_fid.txt --soft_truncation true {FIVE_STEPS} {ONE_STEP}",
}


def configuration(name: str, more: str = "") -> Config:
    return parse_config([*SETTINGS[name].split(), *COMMON.split(), *more.split()])


def data(config: Config, n: int, seed: int) -> torch.Tensor:
    """Random data (n, ...) on the CPU, of the kind that the configuration names."""
    generator, shape = torch.Generator().manual_seed(seed), config[DataOptions].shape
    if config[DataOptions].is_image:
        return torch.randint(0, 256, (n, *shape), generator=generator, dtype=torch.uint8)
    return torch.randn(n, *shape, generator=generator)


def micro_batches(config: Config, step: int, device: torch.device) -> list[MicroBatch]:
    """Those of a step on one rank."""
    n = config[TrainingOptions].total_batch_size
    positions, values = torch.arange(n * step, n * (step + 1)), data(config, n, step)
    pieces = zip(values.chunk(2), positions.chunk(2), strict=True)
    return [MicroBatch(piece.to(device), places.to(device), places) for piece, places in pieces]


class Model:
    """A method and its steps of training."""

    def __init__(self, name: str, device: torch.device, more: str = "") -> None:
        self.config, self.device = configuration(name, more), device
        distributed = Distributed(device=device)
        self.method: Method = build_method(self.config, distributed)
        seed = self.config[RunOptions].seed
        total = self.config[TrainingOptions].total_batch_size
        self._step = TrainingStep(self.method, distributed, seed=seed, total_batch_size=total)

    def prepare(self) -> Callable[[], dict[str, torch.Tensor]]:
        """The next step, whose batch is on the device."""
        step = self.method.state.step
        batches = micro_batches(self.config, step, self.device)
        torch.manual_seed(step)
        return lambda: self._step(batches)

    def step(self) -> dict[str, float]:
        """Take the next step; what it reports."""
        return {name: host(value).item() for name, value in self.prepare()().items()}

    def weights(self) -> dict[str, Any]:
        """Of all networks, on the CPU."""
        return {name: host(dict(network.state_dict())) for name, network in self.method.state.networks.items()}

    def noise(self, purpose: str, n: int = 2) -> Noise:
        return Noise(1, purpose, torch.arange(n), device=self.device)
