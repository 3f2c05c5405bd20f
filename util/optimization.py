"""Optimisers, learning-rate warm-up and gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from util.errors import UsageError

OPTIMIZERS = ("Adam", "AdamW", "Adamax")


def make_optimizer(
    name: str,
    parameters: Iterable[nn.Parameter],
    learning_rate: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    without_decay: Iterable[nn.Parameter] = (),
    amsgrad: bool = False,
) -> torch.optim.Optimizer:
    """An optimiser of the trainable parameters.

    Parameters with ``requires_grad=False`` are left out: parameter i of the state is the i-th trainable one, those
    ``without_decay`` after all others.
    On a GPU, Adam and AdamW are NVIDIA Apex's FusedAdam where that is installed and PyTorch's fused kernels
    otherwise; the state_dict has PyTorch's layout in both cases, so a snapshot moves freely between them.

    Args:
        name: "Adam" (weight decay is the L2 kind), "AdamW" (decoupled) or "Adamax" (L2).
        parameters: e.g. ``network.parameters()``, already on their device.
        learning_rate: base learning rate.
        weight_decay: weight-decay coefficient.
        betas: decay rates of the two moments.
        eps: added outside the square root.
        without_decay: those of ``parameters`` that have no weight decay.
        amsgrad: with the largest second moment so far (Reddi et al., arXiv 1904.09237); for Adam and AdamW.

    Raises:
        UsageError: for an unknown name or a value out of range.
    """
    if name not in OPTIMIZERS:
        raise UsageError(f"unknown optimizer {name!r}; choose one of {', '.join(OPTIMIZERS)}")
    if name == "Adamax" and amsgrad:
        raise UsageError("--optimizer Adamax has no AMSGrad, which this system is trained with; use Adam or AdamW")
    trainable = [p for p in parameters if p.requires_grad]
    options: dict[str, Any] = {"lr": learning_rate, "betas": betas, "eps": eps, "weight_decay": weight_decay}
    exempt = {id(p) for p in without_decay}
    groups: list[dict[str, Any]] = [{"params": [p for p in trainable if id(p) not in exempt]}]
    if exempt:
        groups.append({"params": [p for p in trainable if id(p) in exempt], "weight_decay": 0.0})
    try:
        if name == "Adamax":
            return torch.optim.Adamax(groups, foreach=True, **options)
        # Apex has no AMSGrad.
        apex_adam = _apex_fused_adam() if all(p.is_cuda for p in trainable) and not amsgrad else None
        if apex_adam is not None:
            optimizer = apex_adam(groups, adam_w_mode=name == "AdamW", **options)
            keep_native_state_layout(optimizer)
            return optimizer
        native = torch.optim.AdamW if name == "AdamW" else torch.optim.Adam
        return native(groups, fused=True, amsgrad=amsgrad, **options)
    except ValueError as error:
        raise UsageError(f"optimizer {name}: {error}; correct the optimiser's settings") from None


def warmed_up_learning_rate(base: float, n_warmup_iters: int, step: int) -> float:
    """Linear warm-up: base * min(step / n_warmup_iters, 1), or ``base`` if there is no warm-up.

    ``step`` counts *completed* updates, so the very first update has learning rate 0 (Adam's moments move,
    the parameters do not), as in the training of CLD (arXiv 2112.07068) and ScoreFlow (arXiv 2101.09258).
    """
    return base * min(step / n_warmup_iters, 1.0) if n_warmup_iters > 0 else base


def linear_learning_rate(
    base: float, n_warmup_iters: int, step: int, *, n_steps: int | None = None, lowest: float = 1e-8
) -> float:
    """Linear from ``lowest`` to ``base`` over the warm-up, then constant, or linear to ``lowest`` at ``n_steps``.

    As in the training of VDM (arXiv 2107.00630) and i-DODE (arXiv 2305.03935).

    Args:
        base: learning rate at the end of the warm-up.
        n_warmup_iters: steps of the warm-up.
        step: number of completed updates.
        n_steps: where the decay ends; None is no decay.
        lowest: learning rate at both ends.
    """
    if step < n_warmup_iters:
        return lowest + (base - lowest) * step / n_warmup_iters
    if n_steps is None:
        return base
    share = (step - n_warmup_iters) / max(n_steps - n_warmup_iters, 1)
    return base + (lowest - base) * min(share, 1.0)


def decaying_learning_rate(base: float, n_warmup_iters: int, n_train_iters: int, cosine: bool, step: int) -> float:
    """Linear warm-up, then a tenth less every 3,000 iterations, or half a cosine to what that rule ends with.

    The rules of HSIVI (arXiv 2310.17153). ``step`` is the number of completed iterations, and the rate is for iteration
    ``step`` + 1, so the first update has base / n_warmup_iters.
    """
    iteration = step + 1
    if iteration <= n_warmup_iters:
        return base * iteration / n_warmup_iters
    if not cosine:
        return base * 0.9 ** (iteration // 3000)
    end = base * 0.9 ** (n_train_iters // 3000)
    return end + (base - end) * (1 + math.cos(math.pi * iteration / n_train_iters)) / 2


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> torch.Tensor:
    """Scale all gradients, in place, by min(1, max_norm / (norm + 1e-6)), norm their joint L2 norm.

    Non-finite gradients stay non-finite, and the returned norm says so.

    Returns:
        The norm before clipping, a scalar tensor on the gradients' device: the host does not wait for it.
    """
    return nn.utils.clip_grad_norm_(parameters, max_norm)


def keep_native_state_layout(optimizer: torch.optim.Optimizer) -> None:
    """Give the state_dict of an Apex optimiser, which counts steps per group, the layout of PyTorch's Adam.

    Both directions: ``state_dict()`` returns that layout, and ``load_state_dict()`` expects it.
    """
    optimizer.register_state_dict_post_hook(_to_native_layout)
    optimizer.register_load_state_dict_pre_hook(_to_apex_layout)


_COMMON_OPTIONS = ("lr", "betas", "eps", "weight_decay", "params")


def _to_native_layout(_optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    # New dictionaries throughout: those in state_dict are the optimiser's own.
    groups, state = [], {index: dict(entry) for index, entry in state_dict["state"].items()}
    for group in state_dict["param_groups"]:
        groups.append({**{key: group[key] for key in _COMMON_OPTIONS}, "fused": True})
        for index in group["params"]:
            if index in state:
                state[index]["step"] = torch.tensor(float(group["step"]))
    return {"state": state, "param_groups": groups}


def _to_apex_layout(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    groups, state = [], {index: dict(entry) for index, entry in state_dict["state"].items()}
    for own, group in zip(optimizer.param_groups, state_dict["param_groups"], strict=True):
        steps = [int(state[index].pop("step")) for index in group["params"] if index in state]
        groups.append({**own, **{key: group[key] for key in _COMMON_OPTIONS}, "step": max(steps, default=0)})
    return {"state": state, "param_groups": groups}


def _apex_fused_adam() -> Any:
    """Apex's FusedAdam, or None where Apex or its compiled kernels (amp_C) are not installed."""
    try:
        import amp_C  # noqa: F401
        from apex.optimizers import FusedAdam
    except ImportError:
        return None
    return FusedAdam
