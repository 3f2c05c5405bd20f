"""Published i-DODE checkpoints: written here in their layout, read by the importer, continued by the system."""

import msgpack
import numpy as np
import pytest
import torch

from models.vdm_unet import VDMUNet, VDMUNetSettings
from tests.trainers.steps import take_step
from tests.trainers.test_idode import make_method, micro_batches
from trainers.import_checkpoint import main
from util.snapshot import read_snapshot

SETTINGS = VDMUNetSettings(n_image_channels=1, gamma_min=-13.3, gamma_max=5.0, n_channels=32, n_resblocks=1)
STEP = 1234


def published_path(name: str, tensor: torch.Tensor) -> tuple[list[str], np.ndarray]:
    """Path and layout in a published file of one of our parameters."""
    array = tensor.detach().numpy()
    *modules, leaf = name.split(".")
    if leaf == "weight":
        leaf = "scale" if array.ndim == 1 else "kernel"
        if "nin_shortcut" in name:
            array = array[:, :, 0, 0]
        array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
    if modules[0] in ("down", "mid", "up"):
        modules = [".".join(modules[:2]), *modules[2:]]
    return ["score_model", *modules, leaf], array


def packed(array: np.ndarray) -> msgpack.ExtType:
    contents = (array.shape, array.dtype.name, np.ascontiguousarray(array).tobytes())
    return msgpack.ExtType(1, msgpack.packb(contents))


def collection(factor: float) -> dict:
    torch.manual_seed(0)
    tree: dict = {}
    for name, tensor in VDMUNet(SETTINGS).named_parameters():
        path, array = published_path(name, factor * (tensor + 0.01))
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = packed(array)
    return tree


def checkpoint(accumulated: bool = False) -> dict:
    count = packed(np.array(STEP, np.int32))
    state = {"0": {"count": count, "mu": collection(0.1), "nu": collection(0.01)}, "1": {}, "2": {}}
    if accumulated:
        state = {"mini_step": 0, "gradient_step": count, "inner_opt_state": state, "acc_grads": collection(0.0)}
    return {"step": count, "params": collection(1.0), "ema_params": collection(2.0), "opt_state": state}


def convert(contents: dict, folder) -> tuple[int, dict]:
    source, target = folder / "ckpt-1.flax", folder / "out.pth"
    source.write_bytes(msgpack.packb(contents))
    code = main(["idode", str(source), str(target)])
    return code, read_snapshot(target) if code == 0 else {}


@pytest.mark.parametrize("accumulated", [False, True])
def test_imported_run_goes_on_with_its_moments(tmp_path, accumulated):
    code, state = convert(checkpoint(accumulated), tmp_path)
    assert code == 0
    method = make_method()
    method.state.load_state_dict(state, "test")
    assert method.state.step == STEP
    torch.manual_seed(0)
    for (name, expected), (own_name, parameter) in zip(
        VDMUNet(SETTINGS).named_parameters(), method.network.named_parameters(), strict=True
    ):
        assert name == own_name
        torch.testing.assert_close(parameter, expected + 0.01)
        torch.testing.assert_close(method.updater.ema.shadow[name], 2 * (expected + 0.01).detach())
        moments = method.updater.optimizer.state[parameter]
        assert float(moments["step"]) == STEP
        torch.testing.assert_close(moments["exp_avg"], 0.1 * (expected + 0.01).detach())
        torch.testing.assert_close(moments["exp_avg_sq"], 0.01 * (expected + 0.01).detach())
    decays = [group["weight_decay"] for group in method.updater.optimizer.param_groups]
    assert decays == [0.01, 0.0]
    assert take_step(method, micro_batches())["loss"].isfinite()


def remove_parameter(contents):
    del contents["params"]["score_model"]["down.block_0"]["conv1"]["bias"]


def add_parameter(contents):
    contents["ema_params"]["score_model"]["more"] = packed(np.zeros(3, np.float32))


def wrong_shape(contents):
    contents["params"]["score_model"]["dense1"]["kernel"] = packed(np.zeros((128, 64), np.float32))


def not_finite(contents):
    contents["params"]["score_model"]["dense1"]["bias"] = packed(np.full(128, np.nan, np.float32))


def another_module(contents):
    contents["params"]["encoder"] = {"kernel": packed(np.zeros((2, 2), np.float32))}


def no_moments(contents):
    contents["opt_state"] = {}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_parameter, "down.block_0.conv1.bias"),
        (add_parameter, "more"),
        (wrong_shape, "dense1.weight"),
        (not_finite, "not finite"),
        (another_module, "encoder"),
        (no_moments, "opt_state"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, capsys, damage, message):
    contents = checkpoint()
    damage(contents)
    code, _ = convert(contents, tmp_path)
    assert code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
