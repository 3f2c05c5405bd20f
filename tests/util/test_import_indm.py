from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from models.ncsnpp import NCSNpp, NCSNppSettings
from models.residual_flow import FlowSettings, InvertibleFlow
from trainers.import_checkpoint import main
from util.ema import ExponentialMovingAverage
from util.snapshot import read_snapshot


def network() -> NCSNpp:
    return NCSNpp(
        NCSNppSettings(3, 3, image_size=8, n_channels=8, ch_mult=(1, 2), n_resblocks=1, attn_resolutions=(4,))
    )


def flow() -> InvertibleFlow:
    return InvertibleFlow(
        FlowSettings(
            3, 8, n_blocks=(1, 1), hidden_channels=4, code_size=4, encoder_planes=(4,), encoder_out_planes=2,
            prior_hidden_size=4,
        )
    )  # fmt: skip


def published(module: nn.Module, step: int = 42) -> dict:
    """A checkpoint in the published layout, with averages that differ from the weights."""
    averages = [parameter.detach() + 1 for parameter in module.parameters() if parameter.requires_grad]
    return {
        "optimizer": {},
        "model": OrderedDict((f"module.{name}", tensor) for name, tensor in module.state_dict().items()),
        "ema": {"decay": 0.999, "num_updates": step, "shadow_params": averages},
        "step": step,
    }


def convert(folder: Path, score: dict, flow_checkpoint: dict) -> tuple[int, Path]:
    paths = [folder / name for name in ("checkpoint_1.pth", "flow_checkpoint_1.pth", "snapshot.pth")]
    torch.save(score, paths[0])
    torch.save(flow_checkpoint, paths[1])
    return main(["indm", *map(str, paths)]), paths[2]


def test_a_pair_becomes_one_snapshot(tmp_path):
    torch.manual_seed(0)
    modules = {"score": network(), "flow": flow()}
    code, target = convert(tmp_path, published(modules["score"]), published(modules["flow"]))
    assert code == 0
    state = read_snapshot(target)
    assert state["step"] == 42
    for name, empty in (("score", network()), ("flow", flow())):
        empty.load_state_dict(state["networks"][name])
        for key, tensor in modules[name].state_dict().items():
            assert torch.equal(empty.state_dict()[key], tensor), key
        ema = ExponentialMovingAverage(empty.named_parameters(), 0.5)
        ema.load_state_dict(state["emas"][name])
        for key, parameter in modules[name].named_parameters():
            if parameter.requires_grad:
                assert torch.equal(ema.shadow[key], parameter + 1), key


@pytest.mark.parametrize("damage", ["other_step", "score_twice", "too_few_averages", "not_finite"])
def test_what_does_not_fit_is_named(tmp_path, capsys, damage):
    score, flow_checkpoint = published(network()), published(flow())
    expected = {
        "other_step": "of step 42",
        "score_twice": "generator.* and discriminator.* only",
        "too_few_averages": "trainable parameters",
        "not_finite": "not finite",
    }[damage]
    if damage == "other_step":
        flow_checkpoint["step"] = 41
    elif damage == "score_twice":
        flow_checkpoint = score
    elif damage == "too_few_averages":
        flow_checkpoint["ema"]["shadow_params"].pop()
    else:
        next(iter(flow_checkpoint["model"].values())).fill_(float("nan"))
    code, target = convert(tmp_path, score, flow_checkpoint)
    assert code == 2
    message = capsys.readouterr().err
    assert expected in message
    assert len(message.splitlines()) == 1
    assert not target.exists()
