"""Where the weights of the Inception network are: a file that was named, the cache, or the public addresses."""

from __future__ import annotations

import hashlib
import logging
import os
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from models.inception import Inception
from util.errors import UsageError
from util.files import replacing
from util.foreign_checkpoint import read_foreign, real_network
from util.named_shapes import describe_difference, shapes

logger = logging.getLogger(__name__)

ADDRESSES = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
)
"""The same weights twice. Each name ends with what the file's SHA-256 begins with."""
PATIENCE_SECONDS = 60.0
_BLOCK = 1 << 20


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """$SCOREFLEET_HOME, else scorefleet in $XDG_CACHE_HOME, else in ~/.cache."""
    if environment.get("SCOREFLEET_HOME"):
        return Path(environment["SCOREFLEET_HOME"])
    return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scorefleet"


def find_weights(given: Path | None, folder: Path, addresses: Sequence[str] = ADDRESSES) -> Path:
    """The file of weights; it is downloaded where it is neither given nor in the cache.

    Args:
        given: by ``--fid_weights``.
        folder: the cache.
        addresses: to download from, one after the other until one has it.

    Raises:
        UsageError: the given file is missing, or no address has it; nothing half-written is left.
    """
    if given is not None:
        if not given.is_file():
            raise UsageError(f"--fid_weights {given}: no such file; leave it out to download the public one")
        return given
    names = [address.rpartition("/")[2] for address in addresses]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    problems = []
    for address, name in zip(addresses, names, strict=True):
        try:
            _download(address, folder / name)
            return folder / name
        except (OSError, ValueError) as error:  # urllib's errors are OSErrors
            problems.append(f"{address}: {getattr(error, 'reason', None) or error}")
    raise UsageError(
        f"--fid_detector inception: no weights. Put {names[0]} into {folder}, or give --fid_weights PATH "
        f"({'; '.join(' '.join(problem.split()) for problem in problems)})"
    )


def _download(address: str, path: Path) -> None:
    """Raises OSError, also where what came has another checksum than its name says."""
    logger.info("downloading %s to %s", address, path)
    digest = hashlib.sha256()
    with urllib.request.urlopen(address, timeout=PATIENCE_SECONDS) as source, replacing(path) as part:
        length = int(source.headers.get("Content-Length") or 0)
        with part.open("wb") as file, tqdm(total=length or None, unit="B", unit_scale=True, desc=path.name) as bar:
            while block := source.read(_BLOCK):
                file.write(block)
                digest.update(block)
                bar.update(len(block))
            if length and bar.n != length:
                raise OSError(f"it broke off after {bar.n} of {length} bytes")
        expected = path.stem.rpartition("-")[2]
        if not digest.hexdigest().startswith(expected):
            raise OSError(f"its SHA-256 begins with {digest.hexdigest()[:8]}, not {expected}")


def load_inception(path: Path) -> Inception:
    """The network with the weights of a file, float32, in evaluation mode.

    Raises:
        UsageError: the file cannot be read, or holds other names or shapes.
    """
    state = read_foreign(path)
    tensors = dict(state) if isinstance(state, dict) else {}
    network = real_network(Inception, str(path), "the FID's Inception")
    difference = describe_difference(shapes(network.state_dict()), _shapes(tensors))
    if difference:
        raise UsageError(f"--fid_weights {path}: not the FID's Inception network: {difference}")
    network.load_state_dict(tensors, assign=True)
    return network.float().eval()


def _shapes(tensors: Mapping[str, object]) -> dict[str, tuple[int, ...]]:
    return {str(name): tuple(getattr(tensor, "shape", ())) for name, tensor in tensors.items()}
