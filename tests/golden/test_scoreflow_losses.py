"""From network to score, and the training losses with all that is on the way."""

import pytest
import torch

from diffusion.continuous.kernel import perturb
from diffusion.continuous.losses import scoreflow_loss, training_times
from diffusion.continuous.score import make_labelled_score
from diffusion.tensors import expand
from tests.golden.scoreflow_setup import (
    LOOSE_TOLERANCES,
    PRECISIONS,
    TOLERANCES,
    channels_first,
    channels_last,
    comparison,
    make_process,
    process_names,
    shifted,
    toy_score,
    uniform_of_quantile,
    uniform_of_time,
)
from tests.golden.vectors import load
from tests.spelling import ClosedFormTimes, time_label

SCORES = load("scoreflow", "score_fn")
LOSSES = load("scoreflow", "losses")


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("name", process_names(SCORES))
def test_score_of_a_network(name, precision):
    process = make_process(SCORES, name)
    recorded = comparison(SCORES, precision, name)
    a, b, c = (float(value) for value in SCORES["in/net_abc"])
    x, t = channels_first(SCORES["in/x"]), torch.from_numpy(SCORES["in/t"]).double()

    def network(u, label):
        u, label = u.to(PRECISIONS[precision]), label.to(PRECISIONS[precision])
        return a * u + b * expand(label / 999, u) + c * shifted(u).tanh()

    recorded.close("labels", time_label(process, t), TOLERANCES[precision])
    recorded.close("net_out", channels_last(network(x, time_label(process, t))), TOLERANCES[precision])
    score = make_labelled_score(process, network)(x, t)
    assert score.dtype == PRECISIONS[precision]
    recorded.close("score", channels_last(score), LOOSE_TOLERANCES[precision])
    recorded.nothing_left()


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("name", process_names(LOSSES))
def test_losses(name, precision):
    process = make_process(LOSSES, name)
    recorded = comparison(LOSSES, precision, name)
    score = toy_score(LOSSES, process, precision)
    x, z = (channels_first(LOSSES[f"in/{key}"]).to(PRECISIONS[precision]) for key in ("data", "z"))
    eps = float(LOSSES[f"{name}/eps"])
    density = ClosedFormTimes(process, eps, published_behaviour=True)
    settings = sorted({key.split("/")[2] for key in LOSSES if key.startswith(f"f64/{name}/") and "mean" not in key})
    assert settings
    for setting in settings:
        importance = density if "iw1" in setting else None
        uniform = uniform_of_time(LOSSES, name)
        if importance is not None:
            uniform = uniform_of_quantile(LOSSES[f"{name}/quantile"], importance)
        t = training_times(uniform, eps) if importance is None else importance.times(uniform)
        perturbed = perturb(process, x, z, t)
        tolerance, loose = TOLERANCES[precision], LOOSE_TOLERANCES[precision]
        recorded.close(f"{setting}/t", t, tolerance)
        recorded.close(f"{setting}/std", process.kernel_factor(t)[:, 0, 0], loose)
        recorded.close(f"{setting}/perturbed", channels_last(perturbed), tolerance)
        recorded.close(f"{setting}/score", channels_last(score(perturbed, t)), tolerance)
        for reduce_mean in (True, False):
            losses = scoreflow_loss(
                process, score, x, uniform, z,
                weighting="likelihood" if "lw1" in setting else "reweightedv2",
                loss_eps=eps, importance=importance, reduce_mean=reduce_mean,
            )  # fmt: skip
            assert losses.dtype == torch.float64
            recorded.close(f"{setting}_mean{int(reduce_mean)}/losses", losses, loose)
            recorded.close(f"{setting}_mean{int(reduce_mean)}/loss", losses.mean(), loose)
    recorded.nothing_left()
