"""NCSN++: wiring, attention, time conditioning, derivative and parameter layout."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from models.ncsnpp import NCSNpp, NCSNppSettings
from tests.golden import vectors

TOLERANCE = 1e-5


def assert_near(actual: torch.Tensor, expected: np.ndarray, tolerance: float = TOLERANCE) -> None:
    """Relative to the largest entry."""
    difference = np.abs(actual.detach().double().numpy() - expected).max()
    assert difference <= tolerance * np.abs(expected).max()


@pytest.fixture(scope="module")
def recorded():
    return vectors.load("cld", "ncsnpp_tiny")


@pytest.fixture(scope="module")
def settings(recorded):
    channels = int(recorded["hp/image_channels"])
    kinds = set(recorded["modules/kind"].tolist())
    return NCSNppSettings(
        in_channels=recorded["in/x"].shape[1],
        out_channels=channels,
        image_size=int(recorded["hp/image_size"]),
        n_channels=int(recorded["hp/n_channels"]),
        ch_mult=tuple(recorded["hp/ch_mult"].tolist()),
        n_resblocks=int(recorded["hp/n_resblocks"]),
        attn_resolutions=tuple(recorded["hp/attn_resolutions"].tolist()),
        use_fir=bool(recorded["hp/use_fir"]),
        fir_kernel=tuple(recorded["hp/fir_kernel"].tolist()),
        progressive_input="residual" if "pyramid_down" in kinds else "none",
        embedding_type="fourier" if "fourier" in kinds else "positional",
    )


def state_dict(recorded, factor: float = 1.0) -> dict[str, torch.Tensor]:
    prefix = "state_dict/"
    return {
        key.removeprefix(prefix): torch.from_numpy(array) * np.float32(factor)
        for key, array in recorded.items()
        if key.startswith(prefix)
    }


@pytest.fixture
def network(recorded, settings):
    network = NCSNpp(settings).eval()
    network.load_state_dict(state_dict(recorded))
    return network


def test_names_order_and_trainability(recorded, network):
    assert list(network.state_dict()) == recorded["state_dict_names"].tolist()
    assert [name for name, _ in network.named_parameters()] == recorded["state_dict_names"].tolist()
    trainable = [parameter.requires_grad for parameter in network.parameters()]
    assert trainable == recorded["state_dict_trainable"].tolist()


@pytest.mark.parametrize(("prefix", "factor"), [("out", 1.0), ("out_x6", 6.0)])
def test_output_and_vector_jacobian_product(recorded, network, prefix, factor):
    network.load_state_dict(state_dict(recorded, factor))
    x = torch.from_numpy(recorded["in/x"]).requires_grad_()
    y = network(x, torch.from_numpy(recorded["in/t"]))
    (vjp,) = torch.autograd.grad((y * torch.from_numpy(recorded["in/probe"])).sum(), x)
    assert y.dtype == torch.float32
    assert_near(y, recorded[f"{prefix}/y"])
    assert_near(vjp, recorded[f"{prefix}/vjp_x"])


def test_every_module(recorded, network):
    outputs = {}
    for index, module in enumerate(network.all_modules):
        module.register_forward_hook(lambda _module, _inputs, output, i=index: outputs.update({i: output}))
    with torch.no_grad():
        network(torch.from_numpy(recorded["in/x"]), torch.from_numpy(recorded["in/t"]))
    assert len(outputs) == len(recorded["modules/kind"])
    for index, output in outputs.items():
        shape = recorded["modules/out_shape"][index]
        assert tuple(output.shape) == tuple(shape[shape > 0])
        values = output.double().numpy()
        scale = np.abs(values).max()
        assert abs(values.mean() - recorded["modules/out_mean"][index]) <= TOLERANCE * scale
        assert abs(values.std() - recorded["modules/out_std"][index]) <= TOLERANCE * scale
        last = recorded["modules/out_last8"][index]
        assert np.abs(values.flatten()[-len(last) :] - last).max() <= TOLERANCE * scale


def published_settings(image_size: int, **options) -> NCSNppSettings:
    return NCSNppSettings(in_channels=6, out_channels=3, image_size=image_size, **options)


CELEBA = {
    "ch_mult": (1, 1, 2, 2, 2, 2, 2),
    "use_fir": False,
    "progressive_input": "none",
    "embedding_type": "positional",
}


@pytest.mark.parametrize(
    ("settings", "total", "trainable", "tensors", "modules"),
    [
        (published_settings(32), 107_593_987, 107_593_859, 963, 95),
        (published_settings(256, n_resblocks=2, **CELEBA), 65_466_371, 65_466_371, 608, 58),
        (published_settings(256, n_resblocks=4, **CELEBA), 103_073_795, 103_073_795, 936, 88),
    ],
    ids=["CIFAR-10", "CelebA-HQ-256 of the paper", "CelebA-HQ-256 post-publication"],
)
def test_published_sizes(settings, total, trainable, tensors, modules):
    with torch.device("meta"):
        network = NCSNpp(settings)
    counts = Counter()
    for parameter in network.parameters():
        counts[parameter.requires_grad] += parameter.numel()
    assert counts.total() == total
    assert counts[True] == trainable
    assert len(network.state_dict()) == tensors
    assert len(network.all_modules) == modules


def test_published_cifar10_names_and_shapes():
    with torch.device("meta"):
        network = NCSNpp(published_settings(32))
    ours = [
        (
            name,
            "x".join(map(str, parameter.shape)),
            str(parameter.dtype).removeprefix("torch."),
            "trainable" if parameter.requires_grad else "frozen",
        )
        for name, parameter in network.named_parameters()
    ]
    folder = Path(os.environ.get("GOLDEN_DIR") or Path(__file__).parent / "vectors")
    lines = (folder / "cld" / "ncsnpp_cifar10_keys.txt").read_text().splitlines()
    assert ours == [tuple(line.split("\t")) for line in lines]
