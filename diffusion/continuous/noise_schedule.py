"""The linear noise schedule beta(t) = beta0 + beta1 t on forward times t in [0, 1]."""

from dataclasses import dataclass

import torch

from util.errors import UsageError


@dataclass(frozen=True)
class LinearBeta:
    """beta(t) = beta0 + beta1 t (Song et al., arXiv 2011.13456, Appendix C; beta1 is the slope, not the value
    at t = 1).

    Raises:
        UsageError: if beta is negative somewhere on [0, 1] or vanishes everywhere.
    """

    beta0: float
    beta1: float

    def __post_init__(self) -> None:
        # Written so that NaN fails too.
        if not (self.beta0 >= 0 and self.beta0 + self.beta1 >= 0 and 2 * self.beta0 + self.beta1 > 0):
            raise UsageError(
                f"beta0 = {self.beta0}, beta1 = {self.beta1}: beta(t) = beta0 + beta1 t must not be negative "
                "on [0, 1] nor zero throughout; choose beta0 >= 0 and beta1 >= -beta0"
            )

    def beta(self, t: torch.Tensor) -> torch.Tensor:
        """beta at forward times ``t``, float64 of any shape."""
        return self.beta0 + self.beta1 * t

    def integral(self, end: torch.Tensor, start: torch.Tensor | float = 0.0) -> torch.Tensor:
        """The integral of beta from ``start`` to ``end``, exact also where the two are close; float64."""
        return (self.beta0 + self.beta1 * (end + start) / 2) * (end - start)

    def time(self, integral: torch.Tensor) -> torch.Tensor:
        """The time t at which the integral of beta from 0 to t is ``integral`` (not negative); float64 of any
        shape."""
        # The root of the quadratic in the form that loses no digits at small integrals.
        return 2 * integral / (self.beta0 + (self.beta0**2 + 2 * self.beta1 * integral).sqrt())
