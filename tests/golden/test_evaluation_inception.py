"""The Inception network against recorded features, whatever the image sizes and the salt of the file."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from models.inception import Inception, resize
from tests.golden.inception_rule import weights
from tests.golden.vectors import load

ARRAYS = load("evaluation", "inception")
SIZES = sorted({key.split("/")[0] for key in ARRAYS if key.endswith("/images")})
PRECISIONS = {"float32": (torch.float32, 1e-4), "float64": (torch.float64, 1e-6)}


@pytest.fixture(scope="module")
def network() -> Inception:
    made = Inception()
    made.load_state_dict(weights(str(ARRAYS["salt"])))
    return made.eval()


def test_there_is_something_to_compare() -> None:
    assert SIZES


def test_names_and_shapes_are_those_of_the_public_files() -> None:
    folder = Path(os.environ.get("GOLDEN_DIR") or Path(__file__).parent / "vectors")
    lines = (folder / "evaluation" / "inception_keys.txt").read_text().splitlines()
    recorded = dict(line.split("\t") for line in lines if line and not line.startswith("#"))
    with torch.device("meta"):
        ours = {name: str(tuple(tensor.shape)) for name, tensor in Inception().state_dict().items()}
    assert ours == recorded


@pytest.mark.parametrize("size", SIZES)
def test_resize(size: str) -> None:
    images = torch.from_numpy(ARRAYS[f"{size}/images"]).double()
    found = resize(images)[:, :, ::23, ::23].numpy()
    np.testing.assert_allclose(found, ARRAYS[f"{size}/resized_rows"], rtol=0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("size", SIZES)
def test_features(network: Inception, size: str, precision: str) -> None:
    dtype, tolerance = PRECISIONS[precision]
    with torch.no_grad():
        found = network.to(dtype)(torch.from_numpy(ARRAYS[f"{size}/images"]))
    names = [key.split("/")[2] for key in ARRAYS if key.startswith(f"{size}/{precision}/")]
    assert names
    for name in names:
        expected = ARRAYS[f"{size}/{precision}/{name}"]
        error = np.abs(found[name].double().numpy() - expected).max()
        assert error <= tolerance * np.abs(expected).max(), name
