"""Flow matching (Lipman et al., arXiv 2210.02747) as a system that Scorefleet has never heard of.

    python main.py --system flow_matching:SYSTEM -cc flow_matching_digits.txt --workdir work_dir/flow

x_t = (1 - t) noise + t data moves with the velocity data - noise; a network learns its mean given x_t, and the ordinary
differential equation dx/dt = v(x, t) takes noise at t = 0 to data at t = 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from diffusion.bits import PixelScale, in_bits_per_dimension
from diffusion.divergence import integrate_with_divergence
from diffusion.model import LogLikelihood, Samples, go_on, total
from diffusion.ode import solve
from diffusion.preconditioning import Function, preconditioned
from diffusion.tensors import expand
from models.ncsnpp_settings import NCSNppSettings
from trainers.method import Update
from trainers.networks import make_score_network, score_network_settings
from trainers.one_network import OneNetwork
from trainers.options import LearningRateOptions, LikelihoodOptions, OdeSamplingOptions, OptimizationOptions
from trainers.score_model import Network, draw_probe, in_precisions, likelihood_solver, sampling_solver
from trainers.state import TrainingState
from trainers.system import System
from trainers.update import make_scaler, make_updater
from util.config import Config
from util.data.options import DataOptions
from util.distributed import Distributed
from util.errors import UsageError
from util.noise import Noise
from util.option import option


@dataclass(frozen=True)
class FlowMatchingOptions(LearningRateOptions, OdeSamplingOptions, LikelihoodOptions):
    """Flow matching."""

    sigma_data: float = option(0.0, "noise that stays on the data at t = 1", minimum=0.0, maximum=0.5)


def check(config: Config) -> None:
    """Raise UsageError for options that contradict each other."""
    if not config[DataOptions].is_image:
        raise UsageError("flow matching is shown for images; set is_image = true")
    channels = config[DataOptions].image_channels
    score_network_settings(config, channels, channels)


class FlowMatching(OneNetwork):
    """See ``trainers.method.Method``."""

    unit = "bits/dim"
    trajectory = None

    def __init__(self, config: Config, distributed: Distributed) -> None:
        self.config, self.device = config, distributed.device
        self.options, optimization = config[FlowMatchingOptions], config[OptimizationOptions]
        self.shape = config[DataOptions].shape
        self.scale = PixelScale(centered=config[DataOptions].center_image)
        self.network = make_score_network(config, self.shape[0], self.shape[0], self.device)
        self.updater = make_updater(self.network, optimization, self.options.learning_rate)
        self.updaters = {"velocity": self.updater}
        self.updates = [Update("velocity", self.training_losses)]
        self.state = TrainingState.of(self.updaters, make_scaler(optimization, self.device))
        self.heed: Callable[[], None] = go_on
        self.likelihoods = {"negative_log_likelihood": self.negative_log_likelihood}
        self.precisions = in_precisions(self.network, self.device, optimization).map(_velocity)

    def losses(self, function: Function, batch: torch.Tensor, noise: Noise) -> torch.Tensor:
        """|v - (data - noise)|^2 at one time of each sample, float64 (B,)."""
        data = self.scale.dequantize(batch, noise.uniform(*self.shape))
        t, start = noise.uniform(dtype=torch.float64), noise.normal(*self.shape)
        end = data + self.options.sigma_data * noise.normal(*self.shape)
        x = torch.lerp(start, end, expand(t.float(), end))
        return (function(x, t) - (end - start)).flatten(1).square().sum(1, dtype=torch.float64)

    def sample(self, noise: Noise) -> Samples:
        """From noise along the velocity."""

        def drift(t: torch.Tensor, parts: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            return (self.precisions.sampling(parts[0], t.expand(len(parts[0]))).double(),)

        with self.updater.averaged():
            (x,), n_evaluations = solve(
                drift, (noise.normal(*self.shape),), 0.0, 1.0, sampling_solver(self.options), self._heeding
            )
        return Samples(self.scale.to_unit_interval(x.float()), n_evaluations)

    def negative_log_likelihood(self, batch: torch.Tensor, noise: Noise) -> LogLikelihood:
        """-log p(x): back along the velocity to the noise, whose density is known."""
        data = self.scale.dequantize(batch, noise.uniform(*self.shape))

        def backwards(x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
            return -self.precisions.exact(x, 1 - s).double()

        with self.updater.averaged():
            end, divergence, n_evaluations = integrate_with_divergence(
                backwards, data, draw_probe(noise, self.shape, self.options), 0.0, 1.0,
                likelihood_solver(self.options), self._heeding,
            )  # fmt: skip
        prior = -torch.distributions.Normal(0.0, 1.0).log_prob(end).flatten(1).sum(1)
        terms = in_bits_per_dimension({"prior": prior, "divergence": -divergence}, data[0].numel(), self.scale)
        return LogLikelihood(total(terms), terms, n_evaluations)

    def _heeding(self, _number: int, _time: float) -> None:
        self.heed()


def _velocity(network: Network) -> Function:
    """The network sees t from 1 to 1000, which any of its embeddings of time takes."""
    return preconditioned(lambda x, label: network(x.float(), label.float()).float(), label=lambda t: 1 + 999 * t)


SYSTEM = System(
    summary="flow matching",
    options=(FlowMatchingOptions,),
    networks={"ncsnpp": NCSNppSettings},
    check=f"{__name__}:check",
    build=f"{__name__}:FlowMatching",
)
