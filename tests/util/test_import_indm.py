import ast
import os
import re
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from models.ncsnpp import NCSNpp, NCSNppSettings
from models.residual_flow import FlowSettings, InvertibleFlow
from trainers.import_checkpoint import main
from trainers.indm.importer import flow_settings
from util.ema import ExponentialMovingAverage
from util.foreign_checkpoint import real_network
from util.named_shapes import shapes
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


def expected_shapes(found: dict) -> dict:
    """Of the flow that the importer takes these shapes for."""
    return shapes(real_network(lambda: InvertibleFlow(flow_settings(found)), "here", "flow").state_dict())


def test_the_published_flow_is_whole():
    folder = Path(os.environ.get("GOLDEN_DIR") or Path(__file__).parents[1] / "golden" / "vectors") / "indm"
    lines = (folder / "flow_cifar10_state_dict.txt").read_text().splitlines()
    rows = [re.fullmatch(r"[PB] (\S+) (\(.*\)) \w+", line) for line in lines if not line.startswith("#")]
    found = {row[1]: ast.literal_eval(row[2]) for row in rows if row}
    assert len(found) == 442 + 245
    assert expected_shapes(found) == found


@pytest.mark.parametrize(
    "settings",
    [
        {"squeeze_first": True, "image_size": 16},
        {"n_blocks": (2,), "encoder_planes": (4, 6, 8), "image_size": 20},
        {"n_blocks": (1, 2, 1), "image_size": 32, "n_prior_steps": 1},
    ],
)
def test_flows_of_every_form_are_whole(settings):
    small = {"hidden_channels": 4, "code_size": 4, "encoder_planes": (4,), "encoder_out_planes": 2}
    found = shapes(InvertibleFlow(FlowSettings(3, **{**small, "prior_hidden_size": 4, **settings})).state_dict())
    assert expected_shapes(found) == found


@pytest.mark.parametrize(
    "damage",
    [
        "other_step",
        "score_twice",
        "too_few_averages",
        "not_finite",
        "missing_parameter",
        "missing_buffer",
        "other_shape",
        "left_over",
        "no_encoder",
    ],
)
def test_what_does_not_fit_is_named(tmp_path, capsys, damage):
    score, flow_checkpoint = published(network()), published(flow())
    expected = {
        "other_step": "of step 42",
        "score_twice": "generator.* and discriminator.* only",
        "too_few_averages": "trainable parameters",
        "not_finite": "not finite",
        "missing_parameter": "missing generator.flow.transforms.1.chain.0.nnet.3.bias",
        "missing_buffer": "missing discriminator.encoder.net.resnet0.main.1.bn2.running_var",
        "other_shape": "transforms.0.chain.0.nnet.2.weight has shape (3, 3, 1, 1) instead of (4, 4, 1, 1)",
        "left_over": "unexpected generator.flow.transforms.0.chain.0.nnet.7.bias",
        "no_encoder": "no discriminator.encoder.net.top.weight",
    }[damage]
    model = flow_checkpoint["model"]
    if damage == "other_step":
        flow_checkpoint["step"] = 41
    elif damage == "score_twice":
        flow_checkpoint = score
    elif damage == "too_few_averages":
        flow_checkpoint["ema"]["shadow_params"].pop()
    elif damage == "not_finite":
        next(iter(model.values())).fill_(float("nan"))
    elif damage == "missing_parameter":
        del model["module.generator.flow.transforms.1.chain.0.nnet.3.bias"]
    elif damage == "missing_buffer":
        del model["module.discriminator.encoder.net.resnet0.main.1.bn2.running_var"]
    elif damage == "other_shape":
        model["module.generator.flow.transforms.0.chain.0.nnet.2.weight"] = torch.zeros(3, 3, 1, 1)
    elif damage == "left_over":
        model["module.generator.flow.transforms.0.chain.0.nnet.7.bias"] = torch.zeros(3)
    else:
        for name in [name for name in model if "encoder" in name]:
            del model[name]
    code, target = convert(tmp_path, score, flow_checkpoint)
    assert code == 2
    message = capsys.readouterr().err
    assert expected in message
    assert len(message.splitlines()) == 1
    assert not target.exists()
