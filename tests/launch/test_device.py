"""Which device a rank has, alone or with others, and by what rules it computes there."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

import util.distributed as distributed
from launch.options import LaunchOptions
from launch.places.topology import RankPlace, ranks_of_node
from launch.worker import choose_device, settle_arithmetic
from tests.configuration import configured
from trainers.options import OptimizationOptions
from trainers.update import float32_arithmetic
from util.errors import UsageError


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setattr("launch.places.topology.count_devices", lambda device: 2)


@pytest.fixture
def arithmetic_restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before
    torch.use_deterministic_algorithms(False)
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


@pytest.mark.usefixtures("two_gpus")
def test_each_rank_has_a_gpu() -> None:
    devices = [choose_device("auto", RankPlace(rank, rank, 2, 2)) for rank in range(2)]
    assert [device.index for device in devices] == [0, 1]
    assert ranks_of_node(LaunchOptions()) == 2


@pytest.mark.usefixtures("two_gpus")
def test_ranks_share_gpus_only_where_that_is_asked_for() -> None:
    places = [RankPlace(rank, rank, 4, 4) for rank in range(4)]
    assert [choose_device("cuda", place, ranks_per_gpu=2).index for place in places] == [0, 0, 1, 1]
    assert ranks_of_node(LaunchOptions(ranks_per_gpu=2)) == 4
    with pytest.raises(UsageError, match="--ranks_per_gpu"):
        choose_device("cuda", places[0])


@pytest.mark.parametrize(("shares_device", "backend"), [(False, "nccl"), (True, "gloo")])
def test_nccl_only_where_no_device_is_shared(
    monkeypatch: pytest.MonkeyPatch, shares_device: bool, backend: str
) -> None:
    started = []
    monkeypatch.setattr(dist, "init_process_group", lambda name, **_: started.append(name))
    monkeypatch.setattr(dist, "new_group", lambda **_: None)
    distributed.join_group(0, 0, 2, torch.device("cuda", 0), 1.0, shares_device=shares_device)
    assert started == [backend]


@pytest.mark.usefixtures("arithmetic_restored")
def test_deterministic_algorithms() -> None:
    settle_arithmetic(LaunchOptions(deterministic=True, cudnn_benchmark=True))
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.backends.cudnn.benchmark


@pytest.mark.usefixtures("arithmetic_restored")
def test_tf32_in_training_where_it_is_asked_for_and_nowhere_else() -> None:
    settle_arithmetic(LaunchOptions())

    def kinds() -> tuple[str, bool]:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    assert not torch.are_deterministic_algorithms_enabled()
    assert kinds() == ("highest", False)
    for words, expected in (({}, ("highest", False)), ({"tf32": True}, ("high", True))):
        with float32_arithmetic(configured(system="cld", **words)[OptimizationOptions].tf32):
            assert kinds() == expected
        assert kinds() == ("highest", False)
