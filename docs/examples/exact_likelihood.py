"""The exact likelihood of a toy density: -log p by the probability-flow equation, beside its closed form.

    python -m docs.examples.exact_likelihood

A mixture of narrow Gaussians stays one under a linear process, so its score is known at all times, and the divergence
of the flow is computed, not estimated. What is left is the solver's error, and how close the end is to the prior.
"""

import torch

from diffusion.continuous.likelihood import negative_log_likelihood_terms, ode_log_likelihood
from diffusion.continuous.noise_schedule import LinearBeta
from diffusion.continuous.vp import VariancePreserving
from diffusion.ode import Solver

torch.manual_seed(0)
process = VariancePreserving(LinearBeta(0.1, 19.9))
centers = torch.tensor([[-0.6, -0.3], [0.6, -0.3], [0.0, 0.5]]).double()
width = 0.1


def log_density(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Of the mixture at times t (B,), in nats, up to a constant of u; u (B, 2) to (B,)."""
    means = process.transition(t)[:, :, 0] * centers[:, None]  # (3, B, 2)
    deviation = process.covariance_factor(t, (width**2,))[:, 0, 0]
    return torch.logsumexp(-(u - means).square().sum(2) / (2 * deviation**2), dim=0)


def score(u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The gradient of the log density, itself differentiable; (B, 2)."""
    return torch.autograd.grad(log_density(u, t).sum(), u, create_graph=True)[0]


x = centers[torch.randint(3, (200,))] + width * torch.randn(200, 2).double()
solver = Solver("RK45", rtol=1e-6, atol=1e-6)
likelihood = ode_log_likelihood(process, score, x, probe=None, start=0.0, solver=solver)
terms = negative_log_likelihood_terms(process, likelihood)
by_the_flow = torch.stack(list(terms.values())).sum(0)
mixture = torch.distributions.MixtureSameFamily(
    torch.distributions.Categorical(torch.ones(3)),
    torch.distributions.Independent(torch.distributions.Normal(centers, width), 1),
)
error = by_the_flow + mixture.log_prob(x)
print(f"-log p of 200 points: {by_the_flow.mean():.5f} nats in {likelihood.n_evaluations} evaluations of the score,")
print(f"exactly {-mixture.log_prob(x).mean():.5f}; largest error of a point {error.abs().max():.1e}")
