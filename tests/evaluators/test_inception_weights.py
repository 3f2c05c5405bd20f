"""Weights of the Inception network: found, downloaded, or refused in one line with nothing half-written."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from evaluators.detectors import DetectorSettings, open_detector
from evaluators.inception_weights import cache_folder, find_weights, load_inception
from tests.golden.inception_rule import weights
from util.distributed import Distributed
from util.errors import UsageError

CONTENT = bytes(range(256)) * 300
NAME = f"weights-2015-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"


class Files(BaseHTTPRequestHandler):
    """/whole/NAME, /short/NAME that breaks off, /other/NAME with another content; nothing else."""

    kinds: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        kind = self.path.split("/")[1]
        self.kinds.append(kind)
        if kind == "absent":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write({"whole": CONTENT, "short": CONTENT[:1000], "other": CONTENT[::-1]}[kind])

    def log_message(self, format: str, *arguments: object) -> None: ...


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Files) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()


def test_a_given_file_is_taken(tmp_path: Path) -> None:
    given = tmp_path / "given.pth"
    given.touch()
    assert find_weights(given, tmp_path / "cache", []) == given
    with pytest.raises(UsageError, match=r"--fid_weights .*absent\.pth: no such file"):
        find_weights(tmp_path / "absent.pth", tmp_path / "cache", [])


def test_download_goes_on_to_the_next_address_and_is_kept(server: str, tmp_path: Path) -> None:
    addresses = [f"{server}/absent/{NAME}", f"{server}/whole/{NAME}"]
    Files.kinds.clear()
    for _ in range(2):
        path = find_weights(None, tmp_path / "cache", addresses)
        assert path.read_bytes() == CONTENT
    assert Files.kinds == ["absent", "whole"]
    assert [found.name for found in (tmp_path / "cache").iterdir()] == [NAME]


@pytest.mark.parametrize(
    ("kind", "reason"), [("short", "broke off"), ("other", "SHA-256 begins with"), ("absent", "Not Found")]
)
def test_what_cannot_be_had_is_said_and_nothing_is_left(server: str, kind: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        find_weights(None, tmp_path / "cache", [f"{server}/{kind}/{NAME}"])
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "cache") in str(caught.value)
    assert not list((tmp_path / "cache").glob("*"))
    assert not list((tmp_path / "cache").glob(".*"))


def test_no_network(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no weights"):
        find_weights(None, tmp_path, [f"http://127.0.0.1:9/{NAME}"])


def test_cache_folder() -> None:
    assert cache_folder({"SCOREFLEET_HOME": "/a", "XDG_CACHE_HOME": "/b"}) == Path("/a")
    assert cache_folder({"XDG_CACHE_HOME": "/b"}) == Path("/b/scorefleet")
    assert cache_folder({}) == Path.home() / ".cache" / "scorefleet"


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return weights("a salt of these tests/")


def test_a_file_of_the_public_layout_is_a_detector(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "weights.pth")
    settings = DetectorSettings("inception", tmp_path / "weights.pth", batch_size=2)
    detector = open_detector(settings, (1, 8, 8), Distributed())
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = detector.outputs(images)
    network = load_inception(tmp_path / "weights.pth")
    with torch.no_grad():
        expected = network(images.expand(-1, 3, -1, -1))
    assert detector.gives == tuple(outputs)
    assert outputs["features"].dtype == torch.float32
    torch.testing.assert_close(outputs["features"], expected["2048"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs["logits"], expected["logits_unbiased"], rtol=1e-4, atol=1e-4)
    assert detector.digest == hashlib.sha256((tmp_path / "weights.pth").read_bytes()).hexdigest()


FOREIGN = {
    "name": (lambda state: {("Mixed_8a" if name == "fc.bias" else name): state[name] for name in state}, "Mixed_8a"),
    "shape": (lambda state: {**state, "fc.weight": state["fc.weight"][:1000]}, "fc.weight has shape"),
    "no tensors": (lambda _: [1, 2], "missing"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_another_network_is_named(case: str, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    alter, message = FOREIGN[case]
    torch.save(alter(state), tmp_path / "weights.pth")
    with pytest.raises(UsageError, match=message) as caught:
        load_inception(tmp_path / "weights.pth")
    assert "\n" not in str(caught.value)
