"""Critically-damped Langevin diffusion in thirty lines: learn the score of Gaussian points, draw some, compare moments.

    python -m docs.examples.cld_on_a_gaussian

Everything stands in ``diffusion/`` and ``models/``; nothing is read from options, and nothing is written.
"""

import torch

from diffusion.continuous.cld import CriticallyDampedLangevin
from diffusion.continuous.gaussian import GaussianData
from diffusion.continuous.losses import score_matching_loss
from diffusion.continuous.noise_schedule import LinearBeta
from diffusion.continuous.prior import prior_sample
from diffusion.continuous.samplers import StepGrid, sscs
from diffusion.continuous.score import make_score
from models.mlp import MLP

torch.manual_seed(0)
data = GaussianData(torch.tensor([0.3, -0.2]).double(), torch.tensor([[0.20, 0.05], [0.05, 0.10]]).double())
process = CriticallyDampedLangevin(LinearBeta(4.0, 0.0), m_inv=4.0, gamma=0.04, numerical_eps=1e-9, objective="hsm")
network = MLP(in_features=4, out_features=2, n_hidden=32, n_layers=1)  # sees position and velocity
score = make_score(process, network, mixed=True)
optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)

for step in range(600):
    x, uniform, noise = data.sample(torch.randn(256, 2)).float(), torch.rand(256), torch.randn(256, 4)
    losses = score_matching_loss(process, score, x, uniform, noise, weighting="reweightedv2", loss_eps=1e-5)
    optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / 600)
    optimizer.zero_grad()
    losses.mean().backward()
    optimizer.step()

start = prior_sample(process, torch.randn(10_000, 4))
steps = StepGrid(n_evaluations=100, sampling_eps=1e-3, striding="quadratic", denoise=True)
state, n_evaluations = sscs(process, score, start, steps, normal=lambda: torch.randn(10_000, 4))
samples = state[:, :2]
print(f"{len(samples)} samples of {n_evaluations} network evaluations each, and the data:")
for name, found, exact in (("mean", samples.mean(0), data.mean), ("covariance", samples.T.cov(), data.covariance)):
    print(name, found.numpy().round(3).tolist(), exact.numpy().round(3).tolist())
