"""Critically-damped Langevin diffusion (Dockhorn, Vahdat, Kreis, arXiv 2112.07068)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from diffusion.continuous.noise_schedule import LinearBeta
from diffusion.continuous.process import apply, split
from diffusion.tensors import expand
from util.errors import UsageError


def _matrix(xx: torch.Tensor, xv: torch.Tensor, vx: torch.Tensor, vv: torch.Tensor) -> torch.Tensor:
    """(*S, 2, 2) from its four entries, each S."""
    return torch.stack([torch.stack([xx, xv], dim=-1), torch.stack([vx, vv], dim=-1)], dim=-2)


def _decoupled(matrix: torch.Tensor) -> torch.Tensor:
    """With the other sign off the diagonal."""
    return 2 * torch.diag_embed(matrix.diagonal(dim1=-2, dim2=-1)) - matrix


@dataclass(frozen=True)
class CriticallyDampedLangevin:
    """dx = beta v / M dt, dv = -beta (x + Gamma v / M) dt + sqrt(2 Gamma beta) dw with Gamma = 2 sqrt(M).

    Data x and velocity v are coupled as in a critically damped oscillator of mass M (Section 3). The
    velocity starts as N(0, gamma M), the prior is N(0, I) for x and N(0, M I) for v. Methods as in
    diffusion.continuous.process.Process.

    Attributes:
        schedule: beta(t).
        m_inv: 1 / M.
        gamma: initial velocity variance in units of M.
        numerical_eps: added to the diagonal of the covariance that training and the network's score use;
            without it x and v of the hsm kernel are almost perfectly correlated at small times.
        objective: "hsm", hybrid score matching, whose kernel averages over the initial velocity (Section
            3.2), or "dsm", denoising score matching, whose kernel starts from a drawn velocity.

    Raises:
        UsageError: for a value outside its range.
    """

    schedule: LinearBeta
    m_inv: float
    gamma: float
    numerical_eps: float
    objective: Literal["hsm", "dsm"]

    def __post_init__(self) -> None:
        for name in ("m_inv", "gamma"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} = {getattr(self, name)}: choose a positive number")
        if not 0 <= self.numerical_eps < math.inf:
            raise UsageError(f"numerical_eps = {self.numerical_eps}: choose a number that is not negative")
        if self.objective not in ("hsm", "dsm"):
            raise UsageError(f"objective = {self.objective!r}: choose hsm or dsm")

    @property
    def mass(self) -> float:
        return 1.0 / self.m_inv

    @property
    def friction(self) -> float:
        """Gamma = 2 sqrt(M), the value of critical damping."""
        return 2.0 / math.sqrt(self.m_inv)

    @property
    def prior_standard_deviations(self) -> tuple[float, ...]:
        return (1.0, math.sqrt(self.mass))

    @property
    def velocity_variance(self) -> float:
        return self.gamma * self.mass

    @property
    def conditions_on_velocity(self) -> bool:
        return self.objective == "dsm"

    def drift_matrix(self, t: torch.Tensor) -> torch.Tensor:
        beta = self.schedule.beta(t)
        return _matrix(torch.zeros_like(beta), self.m_inv * beta, -beta, -self.friction * self.m_inv * beta)

    def diffusion_coefficient(self, t: torch.Tensor) -> torch.Tensor:
        return (2 * self.friction * self.schedule.beta(t)).sqrt()

    def transition(self, t: torch.Tensor) -> torch.Tensor:
        return self._transition(self.schedule.integral(t))

    def covariance_factor(
        self, t: torch.Tensor, initial_variances: Sequence[torch.Tensor | float]
    ) -> torch.Tensor:
        return self._covariance_factor(self.schedule.integral(t), *initial_variances, added=0.0)

    def kernel_factor(self, t: torch.Tensor) -> torch.Tensor:
        velocity_variance = 0.0 if self.conditions_on_velocity else self.velocity_variance
        return self._covariance_factor(
            self.schedule.integral(t), 0.0, velocity_variance, added=self.numerical_eps
        )

    def analytic_score(self, u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """-v / Sigma_vv, the score of the velocity that is left when its correlation with x is disregarded.

        Sigma_vv is that of the hsm kernel for both objectives, as in the published models.
        """
        _, _, velocity_variance, _ = self._covariance(self.schedule.integral(t), 0.0, self.velocity_variance)
        _, v = split(self, u)
        return -v / expand((velocity_variance + self.numerical_eps).to(u.dtype), v)

    def reversed_langevin_step(
        self, u: torch.Tensor, tau_start: torch.Tensor, tau_end: torch.Tensor, noise: torch.Tensor
    ) -> torch.Tensor:
        """The part of the reverse process that SSCS solves exactly, from tau_start to tau_end (Appendix D).

        That part is the forward process with the sign of the velocity's coupling reversed, so its transition
        and covariance are the forward ones with the off-diagonal entries negated.

        Args:
            u, noise: (B, 2 C, ...), the state and as many standard normals.
            tau_start, tau_end: float64 (B,) reversed times.

        Returns:
            float64 (B, 2 C, ...).
        """
        integral = self.schedule.integral(1 - tau_start, 1 - tau_end)
        factor = self._covariance_factor(integral, 0.0, 0.0, added=0.0)
        return apply(_decoupled(self._transition(integral)), u) + apply(_decoupled(factor), noise)

    def _transition(self, integral: torch.Tensor) -> torch.Tensor:
        """exp of the drift matrix accumulated over an integral of beta (Appendix B)."""
        scaled = math.sqrt(self.m_inv) * integral
        decay = (-scaled).exp()
        return _matrix(
            decay * (1 + scaled), decay * self.m_inv * integral, -decay * integral, decay * (1 - scaled)
        )

    def _covariance(
        self,
        integral: torch.Tensor,
        position_variance: torch.Tensor | float,
        velocity_variance: torch.Tensor | float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Sigma_xx, Sigma_xv, Sigma_vv and the determinant after an integral of beta (Appendix B).

        The covariance is that of the injected noise plus that of the transported initial state. Both parts
        are evaluated without cancellation, and so is the determinant of their sum, in which x and v can be
        almost perfectly correlated.
        """
        inverse_root_mass = math.sqrt(self.m_inv)
        scaled = inverse_root_mass * integral
        q = 2 * scaled
        decay = (-q).exp()

        # 1 - e^-q (1 + q + q^2/2) is the regularised incomplete gamma function P(3, q).
        noise_xx = torch.special.gammainc(torch.full_like(q, 3.0), q)
        noise_xv = 2 * inverse_root_mass * integral**2 * decay
        noise_vv = self.mass * (decay * (q - q**2 / 2) - (-q).expm1())
        noise_determinant = noise_xx * noise_vv - noise_xv**2

        initial_xx = decay * (
            (1 + scaled) ** 2 * position_variance + (self.m_inv * integral) ** 2 * velocity_variance
        )
        initial_xv = (
            decay
            * integral
            * (self.m_inv * (1 - scaled) * velocity_variance - (1 + scaled) * position_variance)
        )
        initial_vv = decay * (integral**2 * position_variance + (1 - scaled) ** 2 * velocity_variance)
        initial_determinant = decay**2 * position_variance * velocity_variance

        determinant = (
            noise_determinant
            + initial_determinant
            + noise_xx * initial_vv
            + noise_vv * initial_xx
            - 2 * noise_xv * initial_xv
        )
        return noise_xx + initial_xx, noise_xv + initial_xv, noise_vv + initial_vv, determinant

    def _covariance_factor(
        self,
        integral: torch.Tensor,
        position_variance: torch.Tensor | float,
        velocity_variance: torch.Tensor | float,
        *,
        added: float,
    ) -> torch.Tensor:
        """Lower Cholesky factor of the covariance with ``added`` on its diagonal."""
        xx, xv, vv, determinant = self._covariance(integral, position_variance, velocity_variance)
        determinant = determinant + added * (xx + vv + added)
        factor_xx = (xx + added).sqrt()
        return _matrix(factor_xx, torch.zeros_like(xv), xv / factor_xx, determinant.sqrt() / factor_xx)
