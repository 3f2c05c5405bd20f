"""Discrete noise schedules and the steps that few-step samplers pick from them.

Noise is added in T steps with labels 0 to T - 1. The state with label k is
sqrt(alphas_bar[k]) x + sqrt(one_minus_alphas_bar[k]) z for data x and standard-normal z: label 0 has a little noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from util.errors import UsageError

LARGEST_COSINE_BETA = 0.999


@dataclass(frozen=True)
class DiscreteSchedule:
    """Some or all labels of a schedule, in increasing order.

    Attributes:
        labels: int64 (M,), positions in the whole schedule.
        betas: float64 (M,), the variance added between the label before and this one; the first is counted from the
            clean data.
        alphas_bar: float64 (M,), the share of the data's variance.
        one_minus_alphas_bar: float64 (M,), variance of the noise, without the cancellation at small labels.
    """

    labels: torch.Tensor
    betas: torch.Tensor
    alphas_bar: torch.Tensor
    one_minus_alphas_bar: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def alphas_bar_before(self) -> torch.Tensor:
        """float64 (M,), ``alphas_bar`` of the label before; before the first are the clean data."""
        return torch.cat([self.alphas_bar.new_ones(1), self.alphas_bar[:-1]])

    @property
    def one_minus_alphas_bar_before(self) -> torch.Tensor:
        """float64 (M,), ``one_minus_alphas_bar`` of the label before; before the first are the clean data."""
        return torch.cat([self.one_minus_alphas_bar.new_zeros(1), self.one_minus_alphas_bar[:-1]])

    @property
    def posterior_variances(self) -> torch.Tensor:
        """float64 (M,), variance of the state one label before given the state and the data; 0 before the first.

        Ho et al., arXiv 2006.11239, equation 7.
        """
        return self.betas * self.one_minus_alphas_bar_before / self.one_minus_alphas_bar

    def subset(self, labels: torch.Tensor) -> DiscreteSchedule:
        """The schedule that visits only these labels (int64, increasing)."""
        alphas_bar, one_minus = self.alphas_bar[labels], self.one_minus_alphas_bar[labels]
        betas = torch.cat([one_minus[:1], 1 - alphas_bar[1:] / alphas_bar[:-1]])
        return DiscreteSchedule(self.labels[labels], betas, alphas_bar, one_minus)

    def to(self, device: torch.device | str) -> DiscreteSchedule:
        """The same on another device."""
        return DiscreteSchedule(
            self.labels.to(device),
            self.betas.to(device),
            self.alphas_bar.to(device),
            self.one_minus_alphas_bar.to(device),
        )


def linear_betas(n_steps: int) -> torch.Tensor:
    """Equally spaced from 0.1 / T to 20 / T, so 1e-4 to 0.02 for T = 1000; float64 (T,).

    Ho et al., arXiv 2006.11239, section 4; the dependence on T is that of Nichol and Dhariwal, arXiv 2102.09672.

    Raises:
        UsageError: so few steps that a beta would reach 1.
    """
    if n_steps <= 20:
        raise UsageError(f"a linear schedule of {n_steps} steps has a beta of 1 or more; use more than 20 steps")
    return torch.linspace(0.1 / n_steps, 20.0 / n_steps, n_steps, dtype=torch.float64)


def cosine_betas(n_steps: int) -> torch.Tensor:
    """Those of alphas_bar in proportion to cos^2((u + 0.008) / 1.008 pi / 2), u = (k + 1) / T, at most 0.999.

    Nichol and Dhariwal, arXiv 2102.09672, section 3.2. Returns float64 (T,).
    """
    u = torch.arange(n_steps + 1, dtype=torch.float64) / n_steps
    share = ((u + 0.008) / 1.008 * (math.pi / 2)).cos() ** 2
    return (1 - share[1:] / share[:-1]).clamp(max=LARGEST_COSINE_BETA)


def make_schedule(kind: str, n_steps: int, single_precision: bool = False) -> DiscreteSchedule:
    """All labels 0 to ``n_steps`` - 1 of a schedule.

    Args:
        kind: "linear" or "cosine".
        n_steps: T.
        single_precision: round betas, products and differences to float32, as the public HSIVI code does, which
            leaves a relative error of 1.7e-4 in the smallest variance of the linear schedule.

    Raises:
        UsageError: no such schedule, or too few steps for it.
    """
    if kind not in ("linear", "cosine"):
        raise UsageError(f"noise_schedule is {kind!r}; choose linear or cosine")
    if n_steps < 1:
        raise UsageError(f"a schedule of {n_steps} steps: it needs at least one")
    betas = linear_betas(n_steps) if kind == "linear" else cosine_betas(n_steps)
    labels = torch.arange(n_steps)
    if single_precision:
        if kind == "linear":
            rounded = torch.linspace(0.1 / n_steps, 20.0 / n_steps, n_steps, dtype=torch.float32)
        else:
            rounded = betas.float()
        alphas_bar = (1 - rounded).cumprod(0)
        return DiscreteSchedule(labels, rounded.double(), alphas_bar.double(), (1 - alphas_bar).double())
    logarithm = torch.log1p(-betas).cumsum(0)
    return DiscreteSchedule(labels, betas, logarithm.exp(), -torch.expm1(logarithm))


def choose_labels(skip_type: str, n_labels: int, n_steps: int = 1000) -> torch.Tensor:
    """The labels that a sampler visits, increasing from 0.

    "uniform": multiples of floor(T / n). Where n does not divide T the last label is well below T. "quad":
    rounded squares of equally spaced numbers, from 0 to 0.8 T (Song et al., arXiv 2010.02502, appendix D).

    Args:
        skip_type: "uniform" or "quad".
        n_labels: how many.
        n_steps: T.

    Returns:
        int64 (n_labels,).

    Raises:
        UsageError: no such rule, or more labels than it can give.
    """
    if skip_type not in ("uniform", "quad"):
        raise UsageError(f"skip_type is {skip_type!r}; choose uniform or quad")
    if not 1 <= n_labels <= n_steps:
        raise UsageError(f"{n_labels} steps cannot be chosen among {n_steps}; use 1 to {n_steps}")
    if skip_type == "uniform":
        return torch.arange(n_labels) * (n_steps // n_labels)
    # float32 as in the public code, so that no label lies on the other side of a half.
    labels = (torch.linspace(0, math.sqrt(0.8 * n_steps), n_labels, dtype=torch.float32) ** 2).round().long()
    if (labels.diff() < 1).any():
        raise UsageError(
            f"skip_type quad has fewer than {n_labels} different labels among {n_steps}; use fewer steps or uniform"
        )
    return labels


def teacher_labels(labels: torch.Tensor, n_steps: int, n_teacher_steps: int, largest_label: int = 1000) -> torch.Tensor:
    """With which label a network of a finer schedule was trained at the noise level of each label of a coarser one.

    The noise after (k + 1) / T of a cosine schedule is that after (j + 1) / T' with j = (k + 1) T' / T - 1, and a
    network trained with T' steps and rescaled labels saw label j largest_label / T' there: k + 0.75 for T = 1000,
    T' = 4000.

    Args:
        labels: (B,), of the coarser schedule.
        n_steps: T, of the coarser schedule.
        n_teacher_steps: T', a multiple of T.
        largest_label: to which the teacher's labels were rescaled.

    Returns:
        float64 (B,).
    """
    finer = (labels.double() + 1) * (n_teacher_steps / n_steps) - 1
    return finer * (largest_label / n_teacher_steps)
