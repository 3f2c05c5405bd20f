"""Published dequantizers: a file of their form with the weights of a recorded miniature gives the recorded noise."""

import dataclasses

import msgpack
import numpy as np
import pytest
import torch

from models.flowpp.dequantizer import Dequantizer
from tests.golden import vectors
from tests.golden.flowpp_setup import assert_near, channels_last, image
from tests.spelling import DequantizerSettings
from trainers.import_checkpoint import main
from util.errors import UsageError
from util.flax_checkpoint import flatten, parse_flax_checkpoint
from util.snapshot import read_snapshot


def packed(array: np.ndarray, code: int = 1) -> msgpack.ExtType:
    return msgpack.ExtType(code, msgpack.packb((array.shape, array.dtype.name, array.tobytes("C"))))


def nested(leaves: dict[str, msgpack.ExtType]) -> dict:
    tree: dict = {}
    for path, value in leaves.items():
        *folders, name = path.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = value
    return tree


def write_checkpoint(path, parameters: dict[str, np.ndarray], **changes) -> None:
    """A training state with the weights as its averages and twice the weights as what the optimiser holds."""
    state = {
        "step": packed(np.array(300_000, dtype=np.int32)),
        "optimizer": {
            "target": {"params": nested({name: packed(2 * array) for name, array in parameters.items()})},
            "state": {"step": packed(np.array(300_000, dtype=np.int32)), "param_states": {}},
        },
        "ema_rate": packed(np.array(0.99, dtype=np.float32), code=3),
        "params_ema": {"params": nested({name: packed(array) for name, array in parameters.items()})},
        **changes,
    }
    path.write_bytes(msgpack.packb(state))


@pytest.mark.parametrize("architecture", ["cifar10", "imagenet32"])
def test_imported_dequantizer(architecture, tmp_path):
    recorded = vectors.load("scoreflow", f"flowpp_{architecture}_tiny")
    prefix = "params/"
    parameters = {key.removeprefix(prefix): array for key, array in recorded.items() if key.startswith(prefix)}
    write_checkpoint(tmp_path / "checkpoint_6", parameters)
    assert main(["scoreflow_dequantizer", str(tmp_path / "checkpoint_6"), str(tmp_path / "out.pth")]) == 0

    state = read_snapshot(tmp_path / "out.pth")
    assert state["step"] == 300_000
    shape = recorded["in/x"].shape
    config = state["config"]
    assert (config["image_size"], config["image_channels"]) == (shape[1], shape[3])
    assert config["dequantizer_n_components"] == int(recorded["cfg/components"])
    settings = DequantizerSettings(
        image_shape=(shape[3], *shape[1:3]),
        **{
            name.removeprefix("dequantizer_"): value
            for name, value in config.items()
            if name.startswith("dequantizer_")
        },
    )
    assert settings.n_filters == int(recorded["cfg/filters"])
    network = Dequantizer(dataclasses.replace(settings, n_heads=int(recorded["cfg/attn_heads"])))
    network.load_state_dict(state["networks"]["dequantizer"])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter /= 2
        for name, parameter in network.named_parameters():
            assert parameter.equal(state["emas"]["dequantizer"]["shadow"][name])
    u, minus_log_q = network(image(recorded["in/eps"], torch.float32), image(recorded["in/x"], torch.float32))
    assert_near(channels_last(u), recorded["f32/out/u"], 1e-4)
    assert_near(minus_log_q, recorded["f32/out/sldj"], 1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("MixLogisticAttnCoupling_0/pos_emb"), "no steps.0.coupling.position_embedding"),
        (lambda weights: weights.pop("Norm_1/norm0_b"), "missing steps.1.norms.0.bias"),
        (lambda weights: weights.update({"Pointwise_1/W0": np.eye(5, dtype=np.float32)}), "pointwise.0.weight has"),
    ],
)
def test_a_dequantizer_that_is_not_whole(change, message, tmp_path, capsys):
    recorded = vectors.load("scoreflow", "flowpp_cifar10_tiny")
    weights = {key.removeprefix("params/"): array for key, array in recorded.items() if key.startswith("params/")}
    change(weights)
    write_checkpoint(tmp_path / "in", weights)
    assert main(["scoreflow_dequantizer", str(tmp_path / "in"), str(tmp_path / "out.pth")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_recorded_file_is_no_complete_dequantizer(tmp_path, capsys):
    blob = vectors.load("scoreflow", "checkpoint_blob_dequantizer")["blob"].tobytes()
    assert "params_ema/params" in " ".join(flatten(parse_flax_checkpoint(blob, "blob")))
    (tmp_path / "in").write_bytes(blob)
    assert main(["scoreflow_dequantizer", str(tmp_path / "in"), str(tmp_path / "out.pth")]) == 2
    message = capsys.readouterr().err
    assert "incomplete" in message or "no parameter of a Flow++ dequantizer" in message
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"params_ema": {}}, "no entry 'params'"),
        ({"optimizer": {"target": {"params": {"Norm_0": {"norm0_x": packed(np.ones(3, np.float32))}}}}}, "norm0_x"),
        ({"step": None}, "no entry|entry 'step'"),
        ({"params_ema": {"params": {"Pointwise_0": {"W0": packed(np.full((3, 3), np.nan))}}}}, "not finite"),
        ({"params_ema": {"params": {"Pointwise_0": {"W0": packed(np.eye(3))}}}}, "params_ema does not fit"),
    ],
)
def test_what_is_wrong_with_a_file(changes, message, tmp_path, capsys):
    write_checkpoint(tmp_path / "in", {"Pointwise_0/W1": np.eye(3, dtype=np.float32)}, **changes)
    assert main(["scoreflow_dequantizer", str(tmp_path / "in"), str(tmp_path / "out.pth")]) == 2
    with pytest.raises(UsageError, match=message):
        raise UsageError(capsys.readouterr().err)
