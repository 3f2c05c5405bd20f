"""``python -m benchmarks.flow``: processor seconds of the CIFAR-10 flow, and of plain automatic differentiation.

The plain version does what one writes first: convolutions on images, kernels bounded anew at every call, one automatic
differentiation for each term of a series, and the graph of all blocks kept until the backward pass.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from models.residual_flow import FlowNoise, FlowSettings, InvertibleFlow, draw_flow_noise
from models.residual_flow.branch import sine
from models.residual_flow.log_determinant import SERIES_EXACT_TERMS, SURROGATE_EXACT_TERMS, roulette_weights
from models.residual_flow.residual_block import ResidualBlock
from models.residual_flow.squeeze import squeeze, unsqueeze
from util.noise import Noise


def plain_branch(block: ResidualBlock, x: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
    """g(x), (B, C, H, W)."""
    first, middle, last = block.nnet.values()
    hidden = F.conv2d(sine(x) if block.activates_input else x, first.bounded_weight(), first.bias, padding=1)
    hidden = sine(hidden) + middle.condition(code)[:, :, None, None]
    hidden = sine(F.conv2d(hidden, middle.bounded_weight(), middle.bias))
    return F.conv2d(hidden, last.bounded_weight(), last.bias, padding=1)


def plain_block(
    block: ResidualBlock, x: torch.Tensor, code: torch.Tensor, v: torch.Tensor, count: int, training: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """y, and the surrogate or the series, (B,)."""
    if not training:
        x = x.detach()
    with torch.enable_grad():
        x = x if x.requires_grad else x.requires_grad_()
        output = plain_branch(block, x, code)
        n_exact_terms = SURROGATE_EXACT_TERMS if training else SERIES_EXACT_TERMS
        weights = roulette_weights(count + n_exact_terms, n_exact_terms, block.poisson_rate)
        vector, total = v, torch.zeros_like(v) if not training else v.clone()
        for k, weight in enumerate(weights[1:], start=1):
            (vector,) = torch.autograd.grad(output, x, vector, retain_graph=True)
            total = total + ((-1) ** k if training else (-1) ** (k + 1) / k) * weight * vector
        if training:
            (total,) = torch.autograd.grad(output, x, total.detach(), create_graph=True)
    return x + output, (total * v).flatten(1).sum(1)


def plain_transform(
    flow: InvertibleFlow, x: torch.Tensor, code: torch.Tensor, noise: FlowNoise, training: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and the sum of the blocks' estimates, (B,)."""
    total = torch.zeros(len(x))
    for block, probes, count in zip(flow.blocks(), noise.probes, noise.counts, strict=True):
        if x.shape[1] != probes.shape[2]:
            x = squeeze(x)
        x, value = plain_block(block, x, code, probes[0], count, training)
        total = total + value
    return unsqueeze(x), total


@torch.no_grad()
def plain_inverse(flow: InvertibleFlow, z: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
    """Data of latents; all samples go on until the last one has come to 1e-6."""
    x = squeeze(z)
    for block, shape in reversed(list(zip(flow.blocks(), flow.block_shapes, strict=True))):
        if x.shape[1] != shape[0]:
            x = unsqueeze(x)
        y, previous = x, x + 1
        while (x - previous).abs().max() > 1e-6:
            previous, x = x, y - plain_branch(block, x, code)
    return x


def enlarge(flow: InvertibleFlow) -> None:
    """One dominant tap for each kernel row, which brings Jacobians near the bound: no series ends early then."""
    with torch.no_grad():
        for block in flow.blocks():
            for layer in block.nnet.values():
                n_outputs, n_inputs, size, _ = layer.weight.shape
                inputs = torch.arange(n_outputs) % n_inputs
                taps = 100 * torch.randn(n_outputs)
                layer.weight[torch.arange(n_outputs), inputs, size // 2, size // 2] += taps


def least_seconds(work: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        seconds.append(time.process_time() - began)
    return min(seconds)


def kept_megabytes(forward: Callable[[], object]) -> float:
    """What a forward pass keeps for the backward pass, parameters included, every storage once."""
    storages: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        # The result holds on to the graph, without which memory would be used again and counted once.
        result = forward()
    del result
    return sum(storages.values()) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flow", description=__doc__)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--n_blocks", type=int, nargs="+", default=[16, 16])
    parser.add_argument("--large_jacobians", action="store_true", help="instead of those of a new flow")
    parser.add_argument("--exact", action="store_true", help="also the exact log-determinant")
    options = parser.parse_args()
    torch.manual_seed(0)
    flow = InvertibleFlow(FlowSettings(3, 32, n_blocks=tuple(options.n_blocks)))
    if options.large_jacobians:
        enlarge(flow)
    indices = torch.arange(options.batch)
    x = torch.rand(options.batch, 3, 32, 32)
    noise = draw_flow_noise(flow, Noise(0, "flow", indices), Noise(0, "counts", indices[:1]))
    with torch.no_grad():
        code, _ = flow.encode(x, noise.code)
        z, _ = flow.transform(x, code, noise, "none")

    def ours(kind: str) -> None:
        with torch.no_grad():
            flow.transform(x, code, noise, kind)

    def loss_ours() -> torch.Tensor:
        output, values = flow.transform(x.clone().requires_grad_(), code, noise, "surrogate")
        return output.square().sum() - values.sum()

    def loss_plainly() -> torch.Tensor:
        output, values = plain_transform(flow, x.clone(), code, noise, training=True)
        return output.square().sum() - values.sum()

    def train_ours() -> None:
        flow.zero_grad()
        loss_ours().backward()

    def train_plainly() -> None:
        flow.zero_grad()
        loss_plainly().backward()

    def forward_plainly() -> None:
        with torch.no_grad():
            data = x
            for block, shape in zip(flow.blocks(), flow.block_shapes, strict=True):
                data = squeeze(data) if data.shape[1] != shape[0] else data
                data = data + plain_branch(block, data, code)

    # Lets libraries set themselves up.
    ours("none")
    rows: list[tuple[str, Callable[[], object], Callable[[], object] | None]] = [
        ("forward", lambda: ours("none"), forward_plainly),
        ("series (evaluation)", lambda: ours("series"), lambda: plain_transform(flow, x, code, noise, training=False)),
        ("inverse", lambda: flow.inverse(z, code), lambda: plain_inverse(flow, z, code)),
        ("training step", train_ours, train_plainly),
    ]
    if options.exact:
        rows.append(("exact log-determinant", lambda: ours("exact"), None))
    print(f"batch {options.batch}, {torch.get_num_threads()} threads; Poisson numbers {list(noise.counts)}")
    for name, work, plain in rows:
        seconds = least_seconds(work, options.repeats)
        before = "" if plain is None else f"   plain autograd {least_seconds(plain, options.repeats):8.2f} s"
        print(f"{name:<24}{seconds:8.2f} s{before}", flush=True)
    ours_kept, plain_kept = kept_megabytes(loss_ours), kept_megabytes(loss_plainly)
    print(f"{'kept for backward pass':<24}{ours_kept:8.0f} MB  plain autograd {plain_kept:8.0f} MB")


if __name__ == "__main__":
    main()
