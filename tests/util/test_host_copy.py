"""Copies on the host: equal, of their own, and in memory that stays."""

from __future__ import annotations

import io

import torch

from util.host_copy import HostCopy


def containers() -> dict:
    return {
        "weights": [torch.randn(3, 5), torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)],
        "odd": (torch.arange(7, dtype=torch.uint8), torch.tensor(True), torch.randn(6).bfloat16(), "text", 4),
        "none": {"empty": torch.empty(0, 3), "part": torch.randn(6, 6)[::2, 1:4], "scalar": torch.tensor(2.5).double()},
        "parameter": torch.nn.Parameter(torch.randn(4)),
    }


def tensors(value: dict) -> list[torch.Tensor]:
    return [*value["weights"], *value["odd"][:3], *value["none"].values(), value["parameter"]]


def test_copies_are_equal_and_do_not_follow_the_original() -> None:
    value = containers()
    copy = HostCopy()(value)
    assert copy["odd"][3:] == ("text", 4)
    for original, copied in zip(tensors(value), tensors(copy), strict=True):
        assert (copied.dtype, copied.shape, copied.requires_grad) == (original.dtype, original.shape, False)
        assert torch.equal(original, copied)
        before = copied.clone()
        original.detach().fill_(1)
        assert torch.equal(copied, before)
    assert copy["weights"][1].is_contiguous(memory_format=torch.channels_last)


def test_memory_is_taken_once_and_again_only_for_more() -> None:
    host, value = HostCopy(), containers()
    host.reserve(value)
    first = tensors(host(value))
    value["weights"][0].fill_(3)
    second = tensors(host(value))
    places = [tensor.data_ptr() for tensor in first if tensor.numel()]
    assert places == [tensor.data_ptr() for tensor in second if tensor.numel()]
    assert (second[0] == 3).all()
    value["weights"].append(torch.ones(1000))
    assert torch.equal(host(value)["weights"][2], torch.ones(1000))
    assert torch.equal(host(value)["weights"][0], value["weights"][0])


def test_a_saved_copy_holds_its_numbers_and_no_others() -> None:
    value = containers()
    file, whole = io.BytesIO(), io.BytesIO()
    torch.save(HostCopy()({"a": value["weights"][0], "b": torch.zeros(100_000)})["a"], file)
    torch.save(value["weights"][0], whole)
    assert len(file.getvalue()) == len(whole.getvalue())
    loaded = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    assert torch.equal(loaded, value["weights"][0])
