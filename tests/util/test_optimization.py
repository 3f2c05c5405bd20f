import copy
import math

import pytest
import torch
from torch import nn

from util.errors import UsageError
from util.optimization import (
    OPTIMIZERS,
    clip_gradients,
    keep_native_state_layout,
    make_optimizer,
    warmed_up_learning_rate,
)


def make_parameters() -> list[nn.Parameter]:
    torch.manual_seed(0)
    parameters = [
        nn.Parameter(torch.randn(4, 3)),
        nn.Parameter(torch.randn(5)),
        nn.Parameter(torch.randn(2, 2)),
    ]
    parameters[1].requires_grad_(False)
    return parameters


def take_steps(
    optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], n_steps: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n_steps):
        for parameter in parameters:
            if parameter.requires_grad:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


class GroupStepAdam(torch.optim.Optimizer):
    """Adam with Apex's bookkeeping: the step is counted in the group, the state has the two moments only."""

    def __init__(self, parameters, lr):
        super().__init__(
            parameters,
            {"lr": lr, "bias_correction": True, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0},
        )

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            (beta1, beta2), k = group["betas"], group["step"]
            assert group["bias_correction"]
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["exp_avg"], state["exp_avg_sq"] = (
                        torch.zeros_like(parameter),
                        torch.zeros_like(parameter),
                    )
                state["exp_avg"].lerp_(parameter.grad, 1 - beta1)
                state["exp_avg_sq"].mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
                scale = (state["exp_avg_sq"] / (1 - beta2**k)).sqrt() + group["eps"]
                parameter.sub_(group["lr"] * state["exp_avg"] / (1 - beta1**k) / scale)


def test_warm_up():
    assert [warmed_up_learning_rate(2.0, 4, step) for step in (0, 1, 2, 3, 4, 5, 1000)] == [
        0,
        0.5,
        1,
        1.5,
        2,
        2,
        2,
    ]
    assert warmed_up_learning_rate(2.0, 0, 0) == 2.0


@pytest.mark.parametrize("max_norm", [0.3, 1e3, math.inf])
def test_clip(max_norm):
    parameters = make_parameters()
    for parameter in parameters[::2]:
        parameter.grad = torch.randn_like(parameter)
    raw = [parameter.grad.clone() for parameter in parameters[::2]]
    norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in raw))
    returned = clip_gradients(parameters, max_norm)
    assert isinstance(returned, torch.Tensor)
    assert float(returned) == pytest.approx(norm, rel=1e-6)
    for parameter, gradient in zip(parameters[::2], raw, strict=True):
        torch.testing.assert_close(parameter.grad, gradient * min(1.0, max_norm / (norm + 1e-6)))


def test_clip_does_not_hide_a_nan():
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([1.0, math.nan])
    assert math.isnan(float(clip_gradients([parameter], 1.0)))
    assert parameter.grad.isnan().any()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_parameters_are_left_out_and_resume_is_exact(name, tmp_path):
    whole = make_parameters()
    frozen = whole[1].detach().clone()
    optimizer = make_optimizer(name, whole, 0.01, weight_decay=0.1)
    take_steps(optimizer, whole, 3, seed=1)
    assert len(optimizer.state_dict()["state"]) == 2
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pth")
    resumed = [nn.Parameter(p.detach().clone(), p.requires_grad) for p in whole]
    other = make_optimizer(name, resumed, 1.0)
    other.load_state_dict(torch.load(tmp_path / "optimizer.pth", weights_only=True))
    take_steps(optimizer, whole, 3, seed=2)
    take_steps(other, resumed, 3, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
    assert torch.equal(whole[1], frozen)


@pytest.mark.parametrize(("name", "decoupled"), [("Adam", False), ("AdamW", True)])
def test_kind_of_weight_decay(name, decoupled):
    parameter = nn.Parameter(torch.tensor([2.0]))
    optimizer = make_optimizer(name, [parameter], 0.1, weight_decay=0.5)
    parameter.grad = torch.zeros(1)
    optimizer.step()
    # Without a gradient, decoupled decay shrinks the weight by lr * decay; L2 makes a full Adam step.
    assert parameter.item() == pytest.approx(2.0 * (1 - 0.1 * 0.5) if decoupled else 2.0 - 0.1)


def test_bad_settings_are_usage_errors():
    with pytest.raises(UsageError, match="unknown optimizer 'SGD'; choose one of Adam, AdamW, Adamax"):
        make_optimizer("SGD", make_parameters(), 0.1)
    with pytest.raises(UsageError, match="learning rate"):
        make_optimizer("Adam", make_parameters(), -0.1)


def test_group_counted_steps_are_saved_as_native_state_and_back():
    parameters = make_parameters()
    reference = copy.deepcopy(parameters)
    grouped, native = GroupStepAdam(parameters[::2], 0.01), make_optimizer("Adam", reference, 0.01)
    keep_native_state_layout(grouped)
    take_steps(grouped, parameters, 3, seed=1)
    take_steps(native, reference, 3, seed=1)
    saved = grouped.state_dict()
    assert grouped.param_groups[0]["step"] == 3
    assert {key: float(entry["step"]) for key, entry in saved["state"].items()} == {0: 3.0, 1: 3.0}

    grouped_again, native_again = GroupStepAdam(parameters[::2], 1.0), make_optimizer("Adam", reference, 1.0)
    keep_native_state_layout(grouped_again)
    grouped_again.load_state_dict(copy.deepcopy(native.state_dict()))
    native_again.load_state_dict(copy.deepcopy(saved))
    assert grouped_again.param_groups[0]["step"] == 3
    assert grouped_again.param_groups[0]["lr"] == 0.01
    take_steps(grouped_again, parameters, 3, seed=2)
    take_steps(native_again, reference, 3, seed=2)
    for a, b in zip(parameters, reference, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_fresh_group_counted_state_is_native_too():
    optimizer = GroupStepAdam(make_parameters()[::2], 0.01)
    keep_native_state_layout(optimizer)
    native = make_optimizer("Adam", make_parameters(), 0.5)
    native.load_state_dict(optimizer.state_dict())
    assert native.param_groups[0]["lr"] == 0.01
