"""Training a dequantizer: initial weights, exact continuation, a score model that stays as it is, which snapshots."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from main import parse_config
from tests.trainers.steps import take_step
from trainers.run import open_datasets
from trainers.scoreflow.dequantizer import (
    DequantizerTraining,
    build_scoreflow,
    choose_score_snapshot,
    settle_snapshots,
)
from trainers.scoreflow.method import ScoreFlow
from util.config import Config
from util.data.loader import MicroBatch
from util.distributed import Distributed
from util.errors import UsageError
from util.noise import Noise
from util.run_file import update_run_file
from util.snapshot import write_snapshot

ALONE = Distributed()
FILES = ["-cc", "configs/smoke/scoreflow_vp.txt", "-sc", "configs/smoke/scoreflow_dequantizer.txt"]
SMALL = {
    "n_channels": 8, "ch_mult": "1", "attn_resolutions": "8", "dropout": 0.4, "dequantizer_n_filters": 4,
    "total_batch_size": 12, "n_warmup_iters": 2, "bound_n_times": 3, "likelihood_solver": "rk4",
    "likelihood_n_steps": 2,
}  # fmt: skip


def make_config(workdir: Path, mode: str, **options) -> Config:
    words = [f"--{name}={value}" for name, value in {**SMALL, **options}.items()]
    return parse_config([*FILES, "--workdir", str(workdir), "--mode", mode, *words])


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """With the snapshot of a score model whose averaged weights are not its weights."""
    folder = tmp_path_factory.mktemp("model")
    model = ScoreFlow(make_config(folder, "train"), ALONE)
    with torch.no_grad():
        for shadow in model.updater.ema.shadow.values():
            shadow += 0.02 * torch.randn(shadow.shape, generator=torch.Generator().manual_seed(shadow.numel()))
    (folder / "checkpoints").mkdir()
    write_snapshot(folder / "checkpoints" / "checkpoint.pth", {**model.state.state_dict(), "step": 700})
    return folder


@pytest.fixture(scope="module")
def images(workdir):
    data = open_datasets(make_config(workdir, "train"), ALONE, True)["train"]
    return data.read(np.arange(60))


def make_training(workdir, **options) -> DequantizerTraining:
    config = make_config(workdir, "train_deq", **options)
    config = config.with_values(score_checkpoint=str(workdir / "checkpoints" / "checkpoint.pth"))
    method = build_scoreflow(config, ALONE)
    assert isinstance(method, DequantizerTraining)
    return method


def step(method: DequantizerTraining, images: torch.Tensor, n_micro_batches: int = 1) -> dict[str, torch.Tensor]:
    positions = torch.arange(12) + 12 * method.state.step
    pieces = positions.chunk(n_micro_batches)
    return take_step(method, [MicroBatch(images[piece], piece) for piece in pieces])


def weights(method: DequantizerTraining) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in method.network.parameters()])


def test_initial_weights_are_those_of_the_whole_first_batch(workdir, images):
    """The first update has learning rate 0, so what is there after it are the initial weights."""
    whole, pieces, others = (make_training(workdir) for _ in range(3))
    drawn = weights(whole)
    metrics = step(whole, images)
    step(pieces, images, n_micro_batches=3)
    step(others, images.flip(0))
    assert weights(pieces).equal(weights(whole))
    assert not weights(whole).equal(drawn)
    assert not weights(others).equal(weights(whole))
    average = torch.cat([shadow.flatten() for shadow in whole.updater.ema.shadow.values()])
    torch.testing.assert_close(average, weights(whole))
    assert metrics["learning_rate"] == 0
    assert 5 < metrics["bits_per_dimension"] < 30
    step(whole, images)
    assert not weights(whole).equal(weights(pieces))


def test_continued_training_is_the_same_training(workdir, images):
    whole, first, second = (make_training(workdir) for _ in range(3))
    for _ in range(4):
        step(whole, images)
    for _ in range(2):
        step(first, images)
    second.state.load_state_dict(first.state.state_dict(), "first")
    for _ in range(2):
        step(second, images)
    assert second.state.step == 4
    assert weights(second).equal(weights(whole))
    for name, shadow in whole.updater.ema.shadow.items():
        assert shadow.equal(second.updater.ema.shadow[name])


def test_the_score_model_stays_as_it_is(workdir, images):
    """With its averaged weights, without dropout, and evaluations between steps change nothing."""
    method, undisturbed = make_training(workdir), make_training(workdir)
    before = {name: values.clone() for name, values in method.model.network.state_dict().items()}
    source = torch.load(workdir / "checkpoints" / "checkpoint.pth", weights_only=True)
    for name, shadow in source["emas"]["score"]["shadow"].items():
        assert before[name].equal(shadow)
    for _ in range(2):
        step(method, images)
        step(undisturbed, images)
        noise = Noise(1, "evaluation", torch.arange(12))
        losses = method.validation_loss(images[:12], noise)
        likelihoods = {name: evaluate(images[:12], noise) for name, evaluate in method.likelihoods.items()}
    assert weights(method).equal(weights(undisturbed))
    assert losses.shape == (12,)
    assert set(likelihoods) == {"nelbo", "negative_log_likelihood"}
    for likelihood in likelihoods.values():
        assert likelihood.terms["dequantization"].abs().min() > 0
        torch.testing.assert_close(sum(likelihood.terms.values()), likelihood.value)
    assert all(parameter.grad is None for parameter in method.model.network.parameters())
    for name, values in method.model.network.state_dict().items():
        assert values.equal(before[name])


def test_evaluation_with_the_trained_dequantizer(workdir, images, tmp_path):
    method = make_training(workdir)
    for _ in range(3):
        step(method, images)
    target = tmp_path / "checkpoint_3.pth"
    # Its sizes are in the snapshot, so the evaluation need not be told.
    write_snapshot(target, {**method.state.state_dict(), "config": method.config.flat()})
    sizes = {"dequantizer_n_filters": 6, "dequantizer_n_couplings": 5}
    config = make_config(workdir, "eval", eval_dequantizer="true", dequantizer_ckpt_file=target, **sizes)
    model = build_scoreflow(config, ALONE)
    model.state.load_networks(torch.load(workdir / "checkpoints" / "checkpoint.pth", weights_only=True), "score")
    for name, evaluate in model.likelihoods.items():
        found, expected = (
            entry(images[:5], Noise(1, "test", torch.arange(5))) for entry in (evaluate, method.likelihoods[name])
        )
        torch.testing.assert_close(found.value, expected.value)
        assert not found.value.requires_grad
    config = make_config(workdir, "eval", eval_dequantizer="true", dequantizer_ckpt_file=target, image_size=16,
                         attn_resolutions="")  # fmt: skip
    with pytest.raises(UsageError, match=r"\(1, 8, 8\), those of the score model \(1, 16, 16\)"):
        build_scoreflow(config, ALONE)


def test_the_score_snapshot_is_the_one_that_the_run_began_with(workdir, tmp_path):
    shutil.copytree(workdir / "checkpoints", tmp_path / "checkpoints")
    config, running = make_config(tmp_path, "train_deq"), tmp_path / "checkpoints" / "checkpoint.pth"
    (tmp_path / "dequantizer").mkdir()
    chosen = choose_score_snapshot(config)
    assert chosen["path"] == str(running)
    update_run_file(tmp_path / "dequantizer", score_snapshot=chosen)
    assert choose_score_snapshot(config) == chosen
    state = torch.load(running, weights_only=True)
    write_snapshot(running, {**state, "step": 800})
    with pytest.raises(UsageError, match=r"step 800\) is not the score model of step 700"):
        choose_score_snapshot(config)
    assert choose_score_snapshot(config.with_values(overwrite=True))["step"] == 800
    shutil.rmtree(tmp_path / "dequantizer")
    # The name under which it is kept outlives the running one.
    shutil.copy(running, tmp_path / "checkpoints" / "checkpoint_800.pth")
    chosen = choose_score_snapshot(config)
    assert chosen["path"].endswith("checkpoint_800.pth")
    update_run_file(tmp_path / "dequantizer", score_snapshot=chosen)
    write_snapshot(running, {**state, "step": 900})
    assert choose_score_snapshot(config) == chosen


def test_snapshots_that_are_not_there(tmp_path):
    config = make_config(tmp_path, "train_deq")
    with pytest.raises(UsageError, match="train the score model first"):
        choose_score_snapshot(config)
    config = config.with_values(score_checkpoint="checkpoint_5.pth")
    with pytest.raises(UsageError, match=r"--score_checkpoint checkpoint_5\.pth: no such file"):
        choose_score_snapshot(config)
    with pytest.raises(UsageError, match="train one with --mode train_deq"):
        settle_snapshots(make_config(tmp_path, "eval", eval_dequantizer=True))
