"""Checkpoints of the published INDM program (Kim et al., arXiv 2205.13699): a score network and a flow, a file each."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models.flow_settings import FlowSettings
from models.residual_flow import InvertibleFlow
from trainers.ncsnpp_checkpoint import read_ncsnpp
from util.errors import UsageError
from util.foreign_checkpoint import read_data_parallel, snapshot_state
from util.named_shapes import Shapes


def import_indm(sources: Sequence[Path]) -> dict[str, Any]:
    """A snapshot of a published pair of checkpoints.

    The layout of both files is that of ``util.foreign_checkpoint.read_data_parallel``.

    Args:
        sources: ``checkpoint_<k>.pth`` with the score network, ``flow_checkpoint_<k>.pth`` with the flow.

    Raises:
        UsageError: not two files, of different steps, or anything missing, of another shape, or not finite.
    """
    if len(sources) != 2:
        raise UsageError(
            f"{len(sources)} files given; a checkpoint is a pair, checkpoint_<k>.pth and flow_checkpoint_<k>.pth; the "
            "snapshot to write comes last"
        )
    score_path, flow_path = sources
    step, score, score_average = read_ncsnpp(score_path)
    flow_step, flow, flow_average = read_data_parallel(
        flow_path, lambda found: InvertibleFlow(flow_settings(found)), "an INDM flow"
    )
    if step != flow_step:
        raise UsageError(f"{score_path} is of step {step}, {flow_path} of step {flow_step}; give two of the same step")
    networks, emas = {"score": score, "flow": flow}, {"score": score_average, "flow": flow_average}
    return snapshot_state("indm", score_path, step, networks, emas)


def flow_settings(found: Shapes) -> FlowSettings:
    """The settings of a flow with these shapes, as far as shapes depend on them.

    Raises:
        KeyError, UsageError: the shapes do not tell.
    """
    foreign = next((name for name in found if not name.startswith(("generator.", "discriminator."))), None)
    if foreign is not None:
        raise UsageError(f"entry '{foreign}'; a flow has generator.* and discriminator.* only")

    def count(prefix: str) -> int:
        return len({match[1] for name in found if (match := re.match(re.escape(prefix) + r"(\d+)\.", name))})

    levels, encoder = "generator.flow.transforms.", "discriminator.encoder.net."
    prior = "discriminator.prior.flow.steps."
    hidden_channels, channels = found[f"{levels}0.chain.0.nnet.0.weight"][:2]
    planes = [found[f"{encoder}resnet{level}.main.0.conv1.weight"][0] for level in range(count(f"{encoder}resnet"))]
    out_planes = found[f"{encoder}top.weight"][0]
    coarsest = math.isqrt(found["discriminator.fc.linear.weight_v"][1] // out_planes)
    return FlowSettings(
        # A squeezed flow is one of smaller images with more channels.
        image_channels=channels,
        image_size=coarsest << len(planes),
        n_blocks=tuple(count(f"{levels}{level}.chain.") for level in range(count(levels))),
        hidden_channels=hidden_channels,
        code_size=found[f"{prior}0.actnorm.bias"][0],
        encoder_planes=tuple(planes),
        encoder_out_planes=out_planes,
        prior_hidden_size=found[f"{prior}0.unit.coupling1_up.net.fc1.weight"][0],
        n_prior_steps=count(prior),
    )
