"""Flow++: complete dequantizers in miniature, and the parameter lists of the published ones."""

import collections
import os
import re
from pathlib import Path

import pytest
import torch

from models.flowpp import logistic_mixture
from models.flowpp.dequantizer import Dequantizer
from tests.golden import vectors
from tests.golden.flowpp_setup import (
    DTYPES,
    LARGEST_LOG_ODDS,
    SUM_TOLERANCE,
    TOLERANCE,
    absolute_sum,
    assert_near,
    channels_last,
    image,
    size_of_terms,
    under,
)
from tests.spelling import DequantizerSettings
from trainers.scoreflow.flowpp_names import dequantizer_parameters

FULL_SIZE = {
    "cifar10": DequantizerSettings((3, 32, 32)),
    "imagenet32": DequantizerSettings(
        (3, 32, 32), "imagenet32", n_couplings=8, n_filters=128, n_blocks=8, n_context_blocks=8
    ),
}


def numbers(parameters, pattern):
    """How many different numbers the pattern finds in the parameters' names."""
    return len({match[1] for name in parameters if (match := re.search(pattern, name))})


def settings_of(recorded, parameters, architecture, published):
    return DequantizerSettings(
        image_shape=(recorded["in/x"].shape[3], *recorded["in/x"].shape[1:3]),
        architecture=architecture,
        n_couplings=numbers(parameters, r"steps\.(\d+)\.coupling"),
        n_filters=int(recorded["cfg/filters"]),
        n_blocks=int(recorded["cfg/blocks"]),
        n_components=int(recorded["cfg/components"]),
        n_heads=int(recorded["cfg/attn_heads"]),
        context_channels=len(parameters["context.input.bias"]),
        n_context_blocks=numbers(parameters, r"context\.blocks\.(\d+)"),
        published_behaviour=published,
    )


@pytest.mark.parametrize("published", [True, False], ids=["published", "ours"])
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("architecture", FULL_SIZE)
def test_miniature(architecture, precision, published, monkeypatch):
    recorded = vectors.load("scoreflow", f"flowpp_{architecture}_tiny")
    dtype = DTYPES[precision]
    parameters = dequantizer_parameters(under(recorded, "params/"), architecture)
    network = Dequantizer(settings_of(recorded, parameters, architecture, published))
    network.load_state_dict(parameters)
    network.to(dtype)

    reached = []

    def log_odds(x, mixture):
        result = exact_log_odds(x, mixture)
        reached.append(result[0].abs().max().item())
        return result

    exact_log_odds = logistic_mixture.log_odds
    monkeypatch.setattr(logistic_mixture, "log_odds", log_odds)
    traced, sizes = {}, collections.defaultdict(list)

    def record(kind, module):
        module.register_forward_hook(lambda _module, _inputs, output: traced.setdefault(kind, []).append(output))

    def record_map(kind, module):
        record(kind, module)
        module.register_forward_hook(lambda _, inputs, _output: sizes[kind].append(size_of_terms(module, *inputs)))

    record("context", network.context)
    for step in network.steps:
        for maps, kind in ((step.norms, "Norm"), (step.pointwise, "Pointwise")):
            for entry in maps:
                record_map(kind, entry)
        record("step", step)
        record_map("MixLogisticAttnCoupling", step.coupling)

    def check(actual, key, size=None):
        tolerance = (TOLERANCE if size is None else SUM_TOLERANCE)[precision]
        assert_near(actual, recorded[f"{precision}/{key}"], tolerance, size)

    pixels = torch.from_numpy(recorded["in/image_uint8"]).movedim(3, 1)
    x = image(recorded["in/x"], dtype)
    torch.testing.assert_close(pixels.to(dtype) / 255, x, rtol=1e-6, atol=1e-7)
    eps = image(recorded["in/eps"], dtype)
    u, minus_log_q = network(eps, x)
    if max(reached, default=0.0) > LARGEST_LOG_ODDS[precision]:
        pytest.skip("the recorded values reach the floors of the public logit")
    total_size = sum(sum(of_kind) for of_kind in sizes.values()) + absolute_sum(u.log(), (-u).log1p(), eps.square())
    check(channels_last(u), "out/u")
    check(minus_log_q, "out/sldj", total_size)
    check(channels_last(traced["context"][0]), "trace/context")
    n_checked = 0
    for key in recorded:
        match = re.fullmatch(precision + r"/trace/(\d+_([A-Za-z]+)_(\d+))/(h0|h1|logd)", key)
        if match is None or match[2] in ("CheckerboardSplit", "Sigmoid"):
            continue
        kind, index, what = match[2], int(match[3]), match[4]
        if kind == "MixLogisticAttnCoupling":
            # A step ends with the exchange of the halves, which the record counts as a module of its own.
            (second, first), _ = traced["step"][index]
            actual = {"h0": first, "h1": second, "logd": traced[kind][index][1]}[what]
            size = sizes[kind][index]
        else:
            halves = traced[kind][2 * index : 2 * index + 2]
            actual = {"h0": halves[0][0], "h1": halves[1][0], "logd": halves[0][1] + halves[1][1]}[what]
            size = sum(sizes[kind][2 * index : 2 * index + 2])
        key = f"trace/{match[1]}/{what}"
        check(*((actual, key, size) if what == "logd" else (channels_last(actual), key)))
        n_checked += 1
    assert n_checked >= 4 * len(network.steps)

    noise, minus_log_q = network.inverse(image(recorded["in/u_for_inverse"], dtype), x)
    # In float32 the recorded u has lost digits near 0 and 1 that the noise depends on.
    assert_near(channels_last(noise), recorded[f"{precision}/out/inv_eps"], {"f32": 5e-4, "f64": 1e-9}[precision])
    assert_near(minus_log_q, recorded[f"{precision}/out/sldj"], 5e-5, total_size)


@pytest.mark.parametrize(("architecture", "n_tensors", "n_parameters"), [
    ("cifar10", 170, 3_466_976), ("imagenet32", 1164, 35_482_720),
])  # fmt: skip
def test_published_names_and_shapes(architecture, n_tensors, n_parameters):
    folder = Path(os.environ.get("GOLDEN_DIR") or Path(__file__).parent / "vectors")
    lines = (folder / "scoreflow" / f"shapes_flowpp_{architecture}.txt").read_text().splitlines()
    published = {}
    for line in lines:
        if not line.startswith("#"):
            path, shape = line.split("\t")
            published[path] = torch.empty([int(size) for size in re.findall(r"\d+", shape)], device="meta")
    with torch.device("meta"):
        network = Dequantizer(FULL_SIZE[architecture])
    ours = {name: tuple(parameter.shape) for name, parameter in network.state_dict().items()}
    converted = dequantizer_parameters(published, architecture)
    assert {name: tuple(values.shape) for name, values in converted.items()} == ours
    assert len(ours) == n_tensors
    assert sum(parameter.numel() for parameter in network.parameters()) == n_parameters
