"""INDM's flow on several ranks: batch statistics and gradients are those of the whole batch on one."""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from models.residual_flow import FlowSettings, InvertibleFlow, draw_flow_noise
from trainers.gradients import ObjectiveGradients
from util.distributed import Distributed
from util.noise import Noise

N_SAMPLES = 5
PARTS = (slice(0, 3), slice(3, N_SAMPLES))


def train_pass(distributed: Distributed, part: slice) -> dict[str, torch.Tensor]:
    """Gradients, buffers and latents of two forward passes and one backward pass."""
    torch.manual_seed(0)
    settings = FlowSettings(
        2,
        8,
        n_blocks=(2, 1),
        hidden_channels=8,
        code_size=4,
        encoder_planes=(4, 6),
        encoder_out_planes=2,
        prior_hidden_size=6,
    )
    flow = InvertibleFlow(settings, sum_over_ranks=distributed.sum).double()
    x = torch.rand(N_SAMPLES, 2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)[part]
    shared = Noise(2, "counts", torch.zeros(1, dtype=torch.int64))
    noise = Noise(2, "flow", torch.arange(N_SAMPLES)[part])
    with torch.no_grad():
        flow(x, draw_flow_noise(flow, noise, shared, dtype=torch.float64), "none")

    def loss_of(noises: tuple[Noise, Noise]) -> tuple[torch.Tensor, torch.Tensor]:
        output = flow(x, draw_flow_noise(flow, *noises, dtype=torch.float64), "surrogate")
        return (output.z**2).sum() - output.log_jacobian.sum(), output.z.detach()

    # Small buckets: gradients are on their way while the batch statistics' backward passes need the ranks too.
    small = 512 / 2**20
    _, (z,) = ObjectiveGradients(loss_of, flow.parameters(), [flow], distributed, bucket_mebibytes=small)(
        [(noise, shared)]
    )
    gradients = {f"gradient {name}": p.grad for name, p in flow.named_parameters() if p.grad is not None}
    return {"z": z, **gradients, **dict(flow.named_buffers())}


def rank_main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", len(PARTS))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=len(PARTS))
    torch.save(train_pass(Distributed(rank, rank, len(PARTS)), PARTS[rank]), f"{folder}/rank_{rank}.pt")
    dist.destroy_process_group()


def test_ranks_of_different_sizes_are_as_one(tmp_path: Path) -> None:
    mp.spawn(rank_main, (str(tmp_path),), nprocs=len(PARTS))
    found = [torch.load(tmp_path / f"rank_{rank}.pt", weights_only=True) for rank in range(len(PARTS))]
    expected = train_pass(Distributed(), slice(None))
    assert sum(name.startswith("gradient") for name in expected) > 50
    torch.testing.assert_close(torch.cat([result.pop("z") for result in found]), expected.pop("z"))
    for result in found:
        assert set(result) == set(expected)
        for name, value in expected.items():
            torch.testing.assert_close(result[name], value, rtol=1e-9, atol=1e-11, msg=name)
            assert torch.equal(result[name], found[0][name])
