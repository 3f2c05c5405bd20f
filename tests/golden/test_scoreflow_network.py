"""DDPM++: output, derivative, embedding, and the names and shapes of the published sizes."""

import ast
import os
from pathlib import Path

import pytest
import torch

from models.embeddings import positional_embedding
from models.ncsnpp import NCSNpp, NCSNppSettings
from tests.golden.cld_setup import Arrays, Comparison
from tests.golden.vectors import load

TOLERANCES = {"f32": 1e-4, "f64": 1e-9}
FOLDER = Path(os.environ.get("GOLDEN_DIR") or Path(__file__).parent / "vectors") / "scoreflow"
FULL_SIZES = {"ddpmpp_continuous": 4, "ddpmpp_deep_continuous": 8}
"""Residual blocks of each level."""


def ddpmpp(
    n_channels: int, ch_mult, n_resblocks: int, attn_resolutions, image_size: int, dropout: float, channels: int = 3
) -> NCSNpp:
    return NCSNpp(
        NCSNppSettings(
            in_channels=channels, out_channels=channels, image_size=image_size, n_channels=n_channels,
            ch_mult=tuple(ch_mult), n_resblocks=n_resblocks, attn_resolutions=tuple(attn_resolutions), use_fir=False,
            progressive_input="none", embedding_type="positional", dropout=dropout,
        )
    )  # fmt: skip


def recorded_network(arrays: Arrays) -> NCSNpp:
    network = ddpmpp(
        int(arrays["cfg/nf"]), arrays["cfg/ch_mult"].tolist(), int(arrays["cfg/num_res_blocks"]),
        arrays["cfg/attn_resolutions"].tolist(), int(arrays["cfg/image_size"]), float(arrays["cfg/dropout"]),
        arrays["in/x"].shape[1],
    )  # fmt: skip
    weights = {
        key.removeprefix("state_dict/"): torch.from_numpy(array)
        for key, array in arrays.items()
        if key.startswith("state_dict/") and key != "state_dict/sigmas"
    }
    network.load_state_dict(weights)
    assert list(network.state_dict()) == list(weights)
    return network.eval()


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("name", ["ncsnpp_tiny", "ncsnpp_tiny_scaled"])
def test_output_and_derivative(name, precision):
    arrays = load("scoreflow", name)
    dtype = torch.float32 if precision == "f32" else torch.float64
    network = recorded_network(arrays).to(dtype)
    x = torch.from_numpy(arrays["in/x"]).to(dtype).requires_grad_()
    t = torch.from_numpy(arrays["in/t"]).to(dtype)
    y = network(x, t)
    (vjp,) = torch.autograd.grad((y * torch.from_numpy(arrays["in/vjp_w"])).sum(), x)
    recorded = Comparison(arrays, f"{precision}/")
    recorded.close("out/y", y.detach(), TOLERANCES[precision])
    recorded.close("out/vjp_x", vjp, TOLERANCES[precision])
    embedding = positional_embedding(t, int(arrays["cfg/nf"]))
    for prefix in (f"{precision}/", ""):
        if f"{prefix}mid/temb_sincos" in arrays:
            Comparison(arrays, prefix).close(
                "mid/temb_sincos", embedding, 1e-4 if not prefix else TOLERANCES[precision]
            )


@pytest.mark.parametrize("name", FULL_SIZES)
def test_published_names_and_shapes(name):
    with torch.device("meta"):
        network = ddpmpp(128, (1, 2, 2, 2), FULL_SIZES[name], (16,), 32, 0.1)
    lines = (FOLDER / f"shapes_{name}.txt").read_text().splitlines()
    expected = [tuple(line.split("\t")) for line in lines if not line.startswith(("#", "sigmas"))]
    ours = [(key, str(tuple(value.shape)), str(value.dtype)[6:]) for key, value in network.state_dict().items()]
    assert ours == expected
    n_parameters = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    assert f"{n_parameters} trainable parameters" in lines[0]
    assert all(ast.literal_eval(shape) for _, shape, _ in expected)
