"""The Dockerfile builds on a plain Debian, and two "nodes" train in its image.

Buildah builds and runs it without a container engine. Takes minutes and gigabytes, so it has to be asked for.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.patience import PATIENCE, wait_for
from tests.system.command import ROOT, end, run, snapshot, state_differences, wait_until
from util.run_file import read_run_file

VARIABLE = "SCOREFLEET_CONTAINER_TESTS"
TINY = {"n_train_iters": 60, "snapshot_freq": 20, "device": "cpu"}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


class Image:
    """The image as a container to run commands in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.storage = [
            "buildah", "--storage-driver", storage_driver(folder),
            "--root", str(folder / "storage"), "--runroot", str(folder / "run"),
        ]  # fmt: skip
        self.environment = {**os.environ, "BUILDAH_ISOLATION": "chroot", "TMPDIR": str(folder)}
        self.container = ""

    def buildah(self, *words: str) -> str:
        done = subprocess.run(
            [*self.storage, *words], cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=1500
        )
        assert done.returncode == 0, f"buildah {words[0]}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout.strip()

    def start(self, workdir: Path, *words: str) -> subprocess.Popen[str]:
        """What ``docker run`` does: the image's entry point with these arguments, as its user."""
        entry = ["tini", "-s", "--", "python", "/opt/scorefleet/main.py"]
        mounts = ["--volume", f"{workdir}:/work/work_dir", "--env", "OMP_NUM_THREADS=1"]
        return subprocess.Popen(
            [*self.storage, "run", *mounts, self.container, "--", *entry, *words],
            env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip


def storage_driver(folder: Path) -> str:
    """overlay where it can be mounted, else vfs, which copies everything for every layer."""
    parts = {name: folder / "probe" / name for name in ("lower", "upper", "work", "merged")}
    for part in parts.values():
        part.mkdir(parents=True)
    options = f"lowerdir={parts['lower']},upperdir={parts['upper']},workdir={parts['work']}"
    mount = ["mount", "-t", "overlay", "overlay", "-o", options, str(parts["merged"])]
    if subprocess.run(mount, capture_output=True, timeout=60).returncode != 0:
        return "vfs"
    subprocess.run(["umount", str(parts["merged"])], check=True, timeout=60)
    return "overlay"


def package_sources(folder: Path) -> list[str]:
    """Mounts that let pip in the build find packages where pip on this machine does; the image keeps none of it."""
    words = [sys.executable, "-m", "pip", "config", "list"]
    settings: dict[str, str] = {}
    places = set()
    for line in subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines():
        name, value = line.split("=", 1)
        value = value.strip("'")
        mounted = value
        for word in value.replace("file://", "").split():
            path = Path(word)
            if path.is_absolute() and path.exists():
                # Below a place of their own, out of the way of what the build installs. An index of links to files
                # beside it is of use only together with them.
                places.add(path.parent if path.name == "simple" else path)
                mounted = mounted.replace(word, f"/mnt{word}")
        settings[name.split(".")[-1]] = mounted
    configuration = folder / "pip.conf"
    configuration.write_text("\n".join(["[global]", *(f"{name} = {value}" for name, value in settings.items())]) + "\n")
    mounts = [(configuration, "/etc/pip.conf"), *((place, f"/mnt{place}") for place in sorted(places))]
    return [word for source, target in mounts for word in ("--volume", f"{source}:{target}:ro")]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    if os.environ.get(VARIABLE) != "1":
        pytest.skip(f"builds an image, which takes minutes and gigabytes; set {VARIABLE}=1")
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("building an image on a bare Debian needs root on Linux")
    missing = [name for name in ("buildah", "debootstrap") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("image")
    image = Image(folder)
    try:
        base = folder / "base"
        subprocess.run(
            ["debootstrap", "--variant=minbase", "bookworm", str(base)], check=True, capture_output=True, timeout=600
        )
        empty = image.buildah("from", "scratch")
        image.buildah("add", empty, str(base), "/")
        image.buildah("commit", "--rm", empty, "localhost/bookworm:min")
        shutil.rmtree(base)
        arguments = ["--build-arg", "BASE=localhost/bookworm:min", "--file", "docker/Dockerfile"]
        mounts = package_sources(folder)
        image.buildah("bud", "--network", "host", *mounts, *arguments, "--tag", "localhost/scorefleet", ".")
        image.container = image.buildah("from", "localhost/scorefleet")
        yield image
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def nodes(image: Image, workdir: Path, *words: str) -> list[subprocess.Popen[str]]:
    """Two nodes that meet over loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = [word for name, value in TINY.items() for word in (f"--{name}", str(value))]
    common = ["-cc", "/opt/scorefleet/configs/smoke/tiny.txt", "--workdir", "work_dir/run", *settings, "--n_nodes", "2"]
    common += ["--master_address", "127.0.0.1", "--master_port", str(port), *words]
    return [image.start(workdir, *common, "--node_rank", str(rank)) for rank in range(2)]


def test_two_nodes_train_and_stop_on_sigterm(image: Image, tmp_path: Path) -> None:
    workdir = tmp_path / "work_dir"
    workdir.mkdir()
    os.chown(workdir, 1000, 1000)

    both = nodes(image, workdir)
    wait_until(lambda: read_run_file(workdir / "run").get("step", 0) >= 10, both[0])
    for node in both:
        for process_id in tini_below(node.pid):
            os.kill(process_id, signal.SIGTERM)
    assert [node.wait(PATIENCE) for node in both] == [75, 75], both[0].communicate()[0]
    stopped = snapshot(workdir / "run")["step"]
    assert 10 <= stopped < TINY["n_train_iters"]

    for node in nodes(image, workdir, "--mode", "continue"):
        end(node)
    run(tmp_path / "outside", config="configs/smoke/tiny.txt", n_gpus_per_node=2, **TINY)
    assert state_differences(workdir / "run", tmp_path / "outside") == []
    assert (workdir / "run" / "checkpoints" / "checkpoint.pth").stat().st_uid == 1000


def test_nothing_but_the_project_and_its_packages_is_in_the_image(image: Image) -> None:
    mounted = Path(image.buildah("mount", image.container))
    inside = {entry.name for entry in (mounted / "opt" / "scorefleet").iterdir()}
    assert inside == {
        "main.py", "requirements.txt", "configs", "diffusion", "evaluators", "launch", "models", "trainers", "util",
    }  # fmt: skip
    assert not list((mounted / "var" / "lib" / "apt" / "lists").glob("*_Packages*"))
    assert not (mounted / "root" / ".cache").exists()
    # Where the build of this test mounted something, an empty file is left.
    assert (mounted / "etc" / "pip.conf").read_text() == ""
    assert not [path for path in (mounted / "mnt").rglob("*") if path.is_file() and path.stat().st_size > 0]


def tini_below(process_id: int) -> list[int]:
    """The processes that a container engine would send the signal to."""
    import psutil

    def found() -> list[int]:
        children = psutil.Process(process_id).children(recursive=True)
        return [child.pid for child in children if child.name() == "tini"]

    wait_for(lambda: bool(found()), "the entry point")
    return found()
