"""Both losses, their gradients and the roll-out against recorded ones, driven by the recorded noise."""

import numpy as np
import pytest
import torch

from tests.golden.hsivi_setup import StandIn, close, recorded_hierarchy
from tests.golden.vectors import load
from tests.spelling import f_loss, mirror, phi_loss, roll_out, states_at

ARRAYS = load("hsivi", "losses")
CASES = sorted({key.split("/")[0] for key in ARRAYS if key.startswith("case")})
# (value, gradients): in float32 as recorded; in float64 the record's own rounding shows.
TOLERANCES = {
    ("phi", torch.float32): (3e-4, 1e-4),
    ("phi", torch.float64): (3e-3, 1e-3),
    ("f", torch.float32): (3e-5, 3e-5),
    ("f", torch.float64): (3e-4, 3e-4),
}


class Case:
    """One recorded loss: settings, networks, random numbers."""

    def __init__(self, name: str, loss: str, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.settings = {key: ARRAYS[f"{name}/{key}"] for key in ("n_discrete_steps", "batch_size", "eta")}
        self.recorded = {
            key.removeprefix(f"{name}/{loss}/"): value
            for key, value in ARRAYS.items()
            if key.startswith(f"{name}/{loss}/")
        }
        n = int(self.settings["n_discrete_steps"])
        self.hierarchy = recorded_hierarchy(ARRAYS, f"{name}/", float(self.settings["eta"]), n, dtype)
        self.teacher, self.phi, self.f = (StandIn(ARRAYS[f"stand_in/{key}"], dtype) for key in ("teacher", "phi", "f"))
        self.log_gamma = self.tensor("log_scaled_gamma").requires_grad_()
        self.depths = torch.from_numpy(self.recorded["rand_index"])

    def tensor(self, key: str) -> torch.Tensor:
        return torch.from_numpy(self.recorded[key]).to(self.dtype)

    def rollout_noise(self):
        """Of each layer in turn."""
        noise = iter(self.tensor("rollout_noise"))
        return lambda: next(noise)

    def chain_noise(self):
        """The same, with the noise of each sample's last layer in its place."""
        last, passed = self.tensor("layer_noise"), 0

        def normal() -> torch.Tensor:
            nonlocal passed
            passed += 1
            earlier = self.tensor("rollout_noise")
            noise = earlier[passed - 1] if passed <= len(earlier) else last
            return torch.where((self.depths == passed)[:, None, None, None], last, noise)

        return normal


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("loss", ["phi", "f"])
def test_pairing(name, loss):
    case = Case(name, loss, torch.float32)
    batch_size, n = (int(case.settings[key]) for key in ("batch_size", "n_discrete_steps"))
    source, mirrored = mirror(torch.arange(batch_size), batch_size, published_behaviour=True)
    drawn = torch.from_numpy(case.recorded["rand_index_drawn"])[source]
    np.testing.assert_array_equal(torch.where(mirrored, n - drawn, drawn), case.recorded["rand_index"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("loss", ["phi", "f"])
def test_roll_out(name, loss, dtype):
    case = Case(name, loss, dtype)
    # In float64 the rounding of abar in the record shows, which grows where abar is small.
    tolerance = {torch.float32: 2e-5, torch.float64: 1e-3}[dtype]
    recorded = case.recorded["rollout_states"]
    arguments = case.hierarchy, case.phi, case.log_gamma, case.tensor("prior_noise")
    close(states_at(*arguments, case.depths - 1, case.rollout_noise()), case.recorded["x_t_plus_1"], tolerance)
    for passed, rows, transition in roll_out(*arguments, case.depths - 1, case.rollout_noise()):
        close(transition.state, recorded[passed][rows.numpy()], tolerance, f"after {passed}")
        assert (case.depths[rows] > passed).all()
    index = case.hierarchy.n_layers - case.depths
    np.testing.assert_array_equal(index, case.recorded["gamma_index"])
    np.testing.assert_array_equal(case.hierarchy.labels[index], case.recorded["time_t"])
    np.testing.assert_array_equal(case.hierarchy.labels[index + 1], case.recorded["time_t_plus_1"])
    close(case.hierarchy.sigma[index], case.recorded["sigma_t"].ravel(), 1e-6)
    close(case.hierarchy.sigma[index + 1], case.recorded["sigma_t_plus_1"].ravel(), 1e-6)
    ends = {}
    for passed, rows, transition in roll_out(*arguments, case.depths, case.chain_noise()):
        for row, state, gamma in zip(rows.tolist(), transition.state, transition.gamma, strict=True):
            if case.depths[row] == passed:
                ends[row] = state, gamma
    in_order = [ends[row] for row in range(len(case.depths))]
    close(torch.stack([state for state, _ in in_order]), case.recorded["x_t"], tolerance)
    close(torch.stack([gamma for _, gamma in in_order]), case.recorded["gamma"], tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_phi_loss(name, dtype):
    case = Case(name, "phi", dtype)
    for network in (case.teacher, case.f):
        network.requires_grad_(False)
    outputs = {}
    networks = {}
    for key, network in (("f", case.f), ("teacher", case.teacher)):
        networks[key] = lambda x, t, key=key, network=network: outputs.setdefault(key, network(x, t))
    losses = phi_loss(
        case.hierarchy, case.phi, case.log_gamma, networks["f"], networks["teacher"], case.tensor("prior_noise"),
        case.depths, case.tensor("layer_noise"), case.rollout_noise(),
    )  # fmt: skip
    loss = losses.mean()
    loss.backward()
    of_value, of_gradients = TOLERANCES["phi", dtype]
    close(loss, case.recorded["loss"], of_value)
    close(outputs["f"], case.recorded["f_out"], of_gradients)
    close(outputs["teacher"], case.recorded["teacher_out"], of_gradients)
    close(case.phi.w.grad, case.recorded["grad_phi_w"], of_gradients)
    close(case.log_gamma.grad, case.recorded["grad_log_scaled_gamma"], of_gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_f_loss(name, dtype):
    case = Case(name, "f", dtype)
    outputs = []

    def f(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        outputs.append(case.f(x, t))
        return outputs[-1]

    losses = f_loss(
        case.hierarchy, case.phi, case.log_gamma, f, case.tensor("prior_noise"), case.depths[:, None],
        case.chain_noise(),
    )  # fmt: skip
    loss = losses.mean()
    loss.backward()
    of_value, of_gradients = TOLERANCES["f", dtype]
    close(loss, case.recorded["loss"], of_value)
    close(outputs[0], case.recorded["f_out"], of_gradients)
    close(case.f.w.grad, case.recorded["grad_f_w"], of_gradients)
    assert case.phi.w.grad is None
    assert case.log_gamma.grad is None
