"""The variational bound in both forms, term by term."""

import pytest
import torch

from diffusion.bits import PixelScale, in_bits_per_dimension
from diffusion.continuous.bound import (
    denoising_norms,
    drift_divergence,
    prior_cross_entropy,
    sliced_terms,
    small_time_offset,
)
from diffusion.continuous.losses import training_times
from tests.golden.scoreflow_setup import (
    LOOSE_TOLERANCES,
    channels_first,
    comparison,
    make_process,
    process_names,
    toy_score,
    uniform_of_quantile,
    uniform_of_time,
)
from tests.golden.vectors import load
from tests.spelling import ClosedFormTimes, variational_bound

ARRAYS = load("scoreflow", "likelihood_bound")
GROUPS = sorted(
    {
        tuple(key.split("/")[1:3])
        for key in ARRAYS
        if key.startswith("f64/") and key.split("/")[1] in process_names(ARRAYS)
    }
)


class RecordedDraws:
    """The draws of the files, in the order in which a bound asks for them."""

    def __init__(self, uniform):
        self.uniforms = iter(uniform)
        normals = [*ARRAYS["in/noise"], ARRAYS["in/prior_noise"], ARRAYS["in/offset_noise"]]
        self.normals = iter([channels_first(values) for values in normals])
        self.signs = iter(channels_first(ARRAYS["in/probe"]))

    def uniform(self, *_shape, dtype):
        return next(self.uniforms).to(dtype)

    def normal(self, *_shape):
        return next(self.normals)

    def rademacher(self, *_shape):
        return next(self.signs)


@pytest.mark.parametrize("precision", LOOSE_TOLERANCES)
@pytest.mark.parametrize(("name", "group"), GROUPS)
def test_bound(name, group, precision):
    form, weighted, with_offset = group.split("_")
    process = make_process(ARRAYS, name)
    recorded = comparison(ARRAYS, precision, f"{name}/{group}")
    tolerance = LOOSE_TOLERANCES[precision]
    score = toy_score(ARRAYS, process, precision)
    x, eps, n_times = channels_first(ARRAYS["in/data"]), float(ARRAYS[f"{name}/eps"]), int(ARRAYS["in/N"])
    density = ClosedFormTimes(process, eps, published_behaviour=True) if weighted == "iw1" else None
    uniform = uniform_of_time(ARRAYS, name)
    if density is not None:
        uniform = uniform_of_quantile(ARRAYS[f"{name}/quantile"], density)
        recorded.close("Z", density.total, tolerance)
    elif "Z" in {key.removeprefix(recorded.prefix) for key in recorded.remaining}:
        recorded.equal("Z", 1)

    times = training_times(uniform, eps) if density is None else torch.stack([density.times(row) for row in uniform])
    deviation, strength = process.kernel_factor(times)[..., 0, 0], process.diffusion_coefficient(times)
    recorded.close("vec_time", times, tolerance)
    recorded.close("std", deviation, tolerance)
    recorded.close("g", strength, tolerance)
    divergence = torch.stack([drift_divergence(process, x, t) for t in times])
    recorded.close("drift_div", divergence, tolerance)
    noises, probes = channels_first(ARRAYS["in/noise"]), channels_first(ARRAYS["in/probe"])
    pieces = [
        denoising_norms(process, score, x, t, noise)
        if form == "dsm"
        else sliced_terms(process, score, x, t, noise, probe)
        for t, noise, probe in zip(times, noises, probes, strict=True)
    ]
    first, second = (torch.stack(piece) for piece in zip(*pieces, strict=True))
    names = ("diff1", "diff2") if form == "dsm" else ("score_div", "score_norm")
    recorded.close(names[0], first, tolerance)
    recorded.close(names[1], second, tolerance)
    inner = first - second if form == "dsm" else 2 * first + second
    integrand = strength**2 * inner - 2 * divergence
    recorded.close("integrand_unweighted", integrand, tolerance)
    if density is not None:
        integrand = integrand * density.total * deviation**2 / strength**2
    recorded.close("integrand", integrand, tolerance)

    prior = prior_cross_entropy(process, x, channels_first(ARRAYS["in/prior_noise"]))
    recorded.close("neg_prior_logp", prior, tolerance)
    if with_offset == "offset1":
        offset = small_time_offset(process, score, x, channels_first(ARRAYS["in/offset_noise"]), eps)
        recorded.close("q_recon", offset["reconstruction"], tolerance)
        recorded.close("p_entropy", -offset["small_time_entropy"], tolerance)
        recorded.close("offset_nats", sum(offset.values()), tolerance)
        smallest = torch.full((len(x),), eps, dtype=torch.float64)
        p_std = process.kernel_factor(smallest)[:, 0, 0]
        recorded.close("p_std", p_std, tolerance)
        recorded.close("q_std", p_std / process.transition(smallest)[:, 0, 0], tolerance)

    terms = variational_bound(
        process,
        score,
        x,
        RecordedDraws(uniform),
        n_times=n_times,
        smallest_time=eps,
        form=form,
        importance=density,
        offset=with_offset == "offset1",
        published_behaviour=True,
    )
    recorded.close("integral", 2 * terms["integral"], tolerance)
    recorded.close("nlogp_no_offset", terms["prior"] + terms["integral"], tolerance)
    recorded.close("nlogp", sum(terms.values()), tolerance)
    in_bits = in_bits_per_dimension(terms, x[0].numel(), PixelScale())
    recorded.close("bpd", sum(in_bits.values()), tolerance)
    recorded.nothing_left()


@pytest.mark.parametrize("name", process_names(ARRAYS))
def test_closed_forms_are_the_expectations_of_what_the_public_code_draws(name):
    """The drift integrated, and the prior term averaged over many draws."""
    process = make_process(ARRAYS, name, linearised_start=False)
    x, eps = channels_first(ARRAYS["in/data"]), float(ARRAYS[f"{name}/eps"])
    ends = torch.tensor([eps, 1.0], dtype=torch.float64)
    t = torch.linspace(eps, 1, 20_001, dtype=torch.float64)
    integral = torch.trapezoid(process.drift_matrix(t)[:, 0, 0], t).item()
    assert process.transition(ends)[:, 0, 0].log().diff().item() == pytest.approx(integral, rel=1e-5, abs=1e-12)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack(
        [prior_cross_entropy(process, x, torch.randn(x.shape, generator=generator)) for _ in range(2000)]
    )
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - prior_cross_entropy(process, x)).abs() < 5 * error).all()
