"""Published score models: every name of the full sizes, the recorded file, and networks that keep their weights."""

import ast
import re

import msgpack
import numpy as np
import pytest
import torch

from tests.golden.test_scoreflow_network import FOLDER, FULL_SIZES, ddpmpp
from tests.golden.vectors import load
from trainers.import_checkpoint import convert, main
from trainers.scoreflow.importer import from_flax, module_names, our_names
from util.errors import UsageError
from util.flax_checkpoint import flatten, parse_flax_checkpoint
from util.snapshot import read_snapshot


def name_map(name: str) -> list[list[str]]:
    lines = (FOLDER / f"name_map_{name}.txt").read_text().splitlines()
    return [line.split("\t") for line in lines if not line.startswith("#")]


@pytest.mark.parametrize("name", FULL_SIZES)
def test_every_name_of_the_published_sizes(name):
    rows = name_map(name)
    parameters = {path: torch.empty(ast.literal_eval(shape), device="meta") for _, _, path, shape, _ in rows}
    names = our_names(parameters, "file")
    assert list(names.items()) == [(path, ours) for ours, _, path, _, _ in rows]
    for _, shape, path, _, _ in rows:
        assert tuple(from_flax(path, parameters[path])[1].shape) == ast.literal_eval(shape), path


def test_conversions_of_the_recorded_file():
    arrays = load("scoreflow", "checkpoint_blob_score")
    leaves = flatten(parse_flax_checkpoint(arrays["blob"].tobytes(), "checkpoint_1"))
    checked = set()
    for path in [path for path in leaves if path.startswith(("params_ema/", "optimizer/target/"))]:
        expected = arrays[f"expect/{path}"]
        kind = path.rpartition("/")[2]
        name, tensor = from_flax(re.sub("params_ema/|optimizer/target/", "", path), leaves[path])
        if kind == "kernel":
            expected = np.transpose(expected, (3, 2, 0, 1) if expected.ndim == 4 else (1, 0))
        np.testing.assert_array_equal(tensor.numpy(), expected)
        assert name.endswith("weight" if kind in ("kernel", "scale") else kind)
        checked.add(kind)
    assert checked >= {"kernel", "bias", "scale", "W"}


def test_the_recorded_file_is_refused_for_what_it_lacks(tmp_path):
    path = tmp_path / "checkpoint_1"
    path.write_bytes(load("scoreflow", "checkpoint_blob_score")["blob"].tobytes())
    with pytest.raises(UsageError, match="checkpoint_1: optimizer/target: "):
        convert("scoreflow", [path], tmp_path / "out.pth")


def packed(value):
    """A nested dictionary of arrays as such a file."""
    if isinstance(value, dict):
        return {name: packed(entry) for name, entry in value.items()}
    array = np.asarray(value)
    return msgpack.ExtType(1, msgpack.packb((array.shape, array.dtype.name, array.tobytes("C"))))


def nested(leaves: dict) -> dict:
    tree: dict = {}
    for path, value in leaves.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = value
    return tree


def published_layout(network) -> dict[str, np.ndarray]:
    """The parameters of one of our networks by their published paths, written down without the importer's rules but
    for the order of modules."""
    modules = module_names(network)
    leaves = {}
    for name, tensor in network.state_dict().items():
        _, index, *layer, kind = name.split(".")
        values = tensor.numpy()
        norm = "GroupNorm" in modules[int(index)] or any("GroupNorm" in part for part in layer)
        if kind == "weight":
            kind = "scale" if norm else "kernel"
        if kind == "kernel":
            values = values.transpose(2, 3, 1, 0) if values.ndim == 4 else values.T
        leaves["/".join([modules[int(index)], *layer, kind])] = values
    return leaves


@pytest.fixture(params=[[8], [4], [4, 8]], ids=str)
def network(request):
    return ddpmpp(8, (1, 2), 1, request.param, 8, 0.1, channels=1)


@pytest.fixture
def state(network):
    leaves = published_layout(network)
    moments = {
        f"{path}/{kind}": 0.5 * values for path, values in leaves.items() for kind in ("grad_ema", "grad_sq_ema")
    }
    return {
        "step": np.int32(123),
        "optimizer": {
            "target": nested(leaves),
            "state": {"step": np.int32(124), "param_states": nested(moments)},
        },
        "params_ema": nested({path: 2 * values for path, values in leaves.items()}),
        "ema_rate": np.float32(0.9999),
    }


def test_an_imported_network_has_the_same_weights(network, state, tmp_path, capsys):
    source, target = tmp_path / "checkpoint_26", tmp_path / "out.pth"
    source.write_bytes(msgpack.packb(packed(state)))
    assert main(["scoreflow", str(source), str(target)]) == 0
    capsys.readouterr()
    snapshot = read_snapshot(target)
    weights = network.state_dict()
    assert list(snapshot["networks"]["score"]) == list(weights)
    for name, tensor in snapshot["networks"]["score"].items():
        assert torch.equal(tensor, weights[name]), name
    ema = snapshot["emas"]["score"]
    assert (ema["decay"], ema["n_updates"], snapshot["step"]) == (0.9999, 123, 123)
    assert all(torch.equal(tensor, 2 * weights[name]) for name, tensor in ema["shadow"].items())
    moments = snapshot["optimizers"]["score"]["state"]
    for index, parameter in enumerate(network.parameters()):
        assert torch.equal(moments[index]["exp_avg"], 0.5 * parameter)
        assert moments[index]["step"] == 124


def parameters(state, change):
    """The same change to parameters, averages and moments."""
    optimizer = state["optimizer"]
    for collection in (optimizer["target"], state["params_ema"], optimizer["state"]["param_states"]):
        change(collection)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: parameters(state, lambda tree: tree["ResnetBlockBigGANpp_1"]["Conv_1"].pop("bias")),
            "missing ResnetBlockBigGANpp_1/Conv_1/bias",
        ),
        (
            lambda state: state["optimizer"]["target"]["Dense_1"].update(kernel=np.zeros((32, 31), np.float32)),
            r"Dense_1/kernel has shape \(31, 32\) instead of \(32, 32\)",
        ),
        (lambda state: parameters(state, lambda tree: tree.pop("Conv_0")), "no Conv_0/kernel"),
        (lambda state: state["params_ema"].pop("Conv_1"), "params_ema Conv_1/"),
        (lambda state: state["optimizer"]["target"].pop("ResnetBlockBigGANpp_3"), "do not make up|no ResnetBlock"),
        (lambda state: state["optimizer"]["target"].update(Extra={"kernel": np.zeros((1, 1), np.float32)}), "Extra"),
        (lambda state: state["params_ema"]["Conv_0"].update(bias=np.full(8, np.nan, np.float32)), "not finite"),
        (lambda state: state.pop("ema_rate"), "ema_rate"),
        (lambda state: state.pop("optimizer"), "optimizer"),
    ],
)
def test_what_is_wrong_is_named(state, change, message, tmp_path, capsys):
    change(state)
    source = tmp_path / "checkpoint_26"
    source.write_bytes(msgpack.packb(packed(state)))
    assert main(["scoreflow", str(source), str(tmp_path / "out.pth")]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\n") == 1
    assert not (tmp_path / "out.pth").exists()
