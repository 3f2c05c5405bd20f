"""What is measured: a method by its configuration, with batches of random data on the device."""

from __future__ import annotations

from collections.abc import Callable

import torch

from main import parse_config
from trainers.method import Method
from trainers.options import OptimizationOptions, TrainingOptions
from trainers.step import TrainingStep
from trainers.systems import build_method
from trainers.update import float32_arithmetic
from util.data.loader import MicroBatch
from util.data.options import DataOptions
from util.distributed import Distributed
from util.noise import Noise
from util.run_options import RunOptions

SMALL = {
    "cld": "configs/smoke/tiny.txt",
    "cld on points": "configs/smoke/diamond.txt",
    "scoreflow": "configs/smoke/scoreflow_vp.txt",
    "idode": "configs/smoke/idode_sp.txt",
    "ddpm": "configs/smoke/ddpm.txt",
    "hsivi": "configs/smoke/hsivi.txt",
    "indm": "configs/smoke/indm_vp_nll.txt",
}
"""A small setting of every system."""

PUBLISHED = (
    "configs/cld/cifar10.txt", "configs/cld/celeba256_post_paper.txt", "configs/scoreflow/cifar10_vp.txt",
    "configs/scoreflow/cifar10_deep_vp.txt", "configs/scoreflow/imagenet32_vp.txt", "configs/idode/cifar10_sp.txt",
    "configs/idode/imagenet32_new_sp.txt", "configs/ddpm/cifar10.txt", "configs/ddpm/celeba64.txt",
    "configs/ddpm/imagenet64.txt", "configs/hsivi/cifar10_15.txt", "configs/indm/cifar10_vp_nll.txt",
    "configs/indm/celeba64_vp_nll.txt",
)  # fmt: skip
"""One setting for each network of a publication."""


class Model:
    """A method on a device.

    Args:
        config: file of settings.
        device: of the networks.
        batch_size: samples of a step.
        flags: more of the command line.
    """

    def __init__(self, config: str, device: torch.device, batch_size: int, *flags: str) -> None:
        teacher = ("--pretrained_model", "none.pth") if "hsivi" in config else ()
        size = ("--training_batch_size", str(batch_size), "--total_batch_size", str(batch_size))
        self.config = parse_config(["-cc", config, *size, *teacher, *flags])
        self.device = device
        distributed = Distributed(device=device)
        self.method: Method = build_method(self.config, distributed)
        self.batch_size = self.config[TrainingOptions].total_batch_size
        seed = self.config[RunOptions].seed
        self._step = TrainingStep(self.method, distributed, seed=seed, total_batch_size=self.batch_size)

    def data(self, n: int, seed: int) -> torch.Tensor:
        """Random (n, ...), made on the CPU."""
        generator, shape = torch.Generator().manual_seed(seed), self.config[DataOptions].shape
        if self.config[DataOptions].is_image:
            values = torch.randint(0, 256, (n, *shape), generator=generator, dtype=torch.uint8)
        else:
            values = torch.randn(n, *shape, generator=generator)
        return values.to(self.device)

    def prepare(self) -> Callable[[], dict[str, torch.Tensor]]:
        """The next step, whose batch is on the device."""
        number = self.method.state.step
        positions = torch.arange(self.batch_size) + number * self.batch_size
        batch = MicroBatch(self.data(self.batch_size, number), positions.to(self.device), positions)
        torch.manual_seed(number)

        def take() -> dict[str, torch.Tensor]:
            with float32_arithmetic(self.config[OptimizationOptions].tf32):
                return self._step([batch])

        return take

    def noise(self, n: int) -> Noise:
        """A stream for n samples."""
        return Noise(0, "benchmark", torch.arange(n), device=self.device)


def wait(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
