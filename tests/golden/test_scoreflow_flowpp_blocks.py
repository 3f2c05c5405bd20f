"""Flow++: every building block and its initialisation."""

import numpy as np
import pytest
import torch

from models.flowpp import bijections, logistic_mixture
from models.flowpp.bijections import PointwiseMap
from models.flowpp.coupling import SMALLEST_LOG_SCALE, floored_log_odds
from models.flowpp.layers import ChannelNorm, GatedAttention, GatedConvolution, concat_elu, gate
from tests.golden import vectors
from tests.golden.flowpp_setup import (
    DTYPES,
    LARGEST_LOG_ODDS,
    SUM_TOLERANCE,
    TOLERANCE,
    absolute_sum,
    assert_near,
    channels_last,
    image,
    normalized_layer,
    plain_layer,
    size_of_terms,
    under,
)
from tests.spelling import ActivationNorm, MixtureCoupling
from trainers.scoreflow.flowpp_names import dequantizer_parameters


@pytest.fixture(scope="module")
def blocks():
    return vectors.load("scoreflow", "flowpp_blocks")


@pytest.fixture(scope="module")
def initial():
    return vectors.load("scoreflow", "flowpp_init")


@pytest.fixture(params=["f32", "f64"])
def precision(request):
    return request.param


@pytest.fixture
def check(blocks, precision):
    """Compares with a recorded output, a log-determinant on the scale of the sizes of its terms."""

    def compare(actual, key, sizes=None):
        tolerance = (TOLERANCE if sizes is None else SUM_TOLERANCE)[precision]
        assert_near(actual, blocks[f"{precision}/{key}"], tolerance, sizes)

    return compare


@pytest.fixture
def given(blocks, precision):
    """A recorded input, as it is or as an image."""
    return lambda key: torch.from_numpy(blocks[key]).to(DTYPES[precision])


@pytest.fixture
def picture(blocks, precision):
    return lambda key: image(blocks[key], DTYPES[precision])


def mixture(given, block):
    return tuple(given(f"{block}/in/{name}") for name in ("logits", "means", "logscales"))


def test_mixture_of_logistics(given, check):
    x, components = given("mixlog/in/x"), mixture(given, "mixlog")
    check(logistic_mixture.log_density(x, components), "mixlog/out/logpdf")
    check(logistic_mixture.log_distribution(x, components)[0], "mixlog/out/logcdf")
    one_each = [torch.zeros_like(components[0]).unsqueeze(-1), *(part.unsqueeze(-1) for part in components[1:])]
    each = x.unsqueeze(-1).expand_as(components[0])
    check(logistic_mixture.log_density(each, one_each), "mixlog/out/component_logpdf")
    check(logistic_mixture.log_distribution(each, one_each)[0], "mixlog/out/component_logcdf")
    y = given("mixlog/in/y")
    check(logistic_mixture.inverse_log_odds(y.log() - (-y).log1p(), components), "mixlog/out/invcdf")


def test_tails_of_the_mixture(given, check):
    x = given("mixlog_tail/in/x")
    components = tuple(part.expand(*x.shape, -1) for part in mixture(given, "mixlog_tail"))
    check(logistic_mixture.log_density(x, components), "mixlog_tail/out/logpdf")
    check(logistic_mixture.log_distribution(x, components)[0], "mixlog_tail/out/logcdf")


def test_distribution_function_of_the_mixture(given, check):
    logits, means, _ = mixture(given, "mixlog")
    components = (logits, means, given("mixcdf/in/logscales").clamp(min=SMALLEST_LOG_SCALE))
    x = given("mixlog/in/x")
    check(logistic_mixture.log_distribution(x, components)[0].exp(), "mixcdf/out/h")
    log_density = logistic_mixture.log_density(x, components)
    check(bijections.per_sample(log_density), "mixcdf/out/logd", absolute_sum(log_density))
    y = given("mixlog/in/y").clamp(0, 1)
    inverse = logistic_mixture.inverse_log_odds(y.log() - (-y).log1p(), components)
    check(inverse, "mixcdf/out/inv_h")
    log_density = logistic_mixture.log_density(inverse, components)
    check(-bijections.per_sample(log_density), "mixcdf/out/inv_logd", absolute_sum(log_density))


def test_sigmoid_and_logit(given, check):
    y, log_determinant = bijections.sigmoid(given("sigmoid/in/x"))
    check(y, "sigmoid/out/h")
    check(log_determinant, "sigmoid/out/logd")
    x, log_derivative = bijections.floored_logit(given("logit/in/y"))
    check(x, "logit/out/h")
    check(bijections.per_sample(log_derivative), "logit/out/logd")
    in_reach = given("logit/in/y").clamp(0.01, 0.99)
    x, log_derivative = bijections.floored_logit(in_reach)
    ours, log_determinant = bijections.logit(in_reach)
    assert_near(ours, x.double().numpy(), 1e-4)
    assert_near(log_determinant, bijections.per_sample(log_derivative).numpy(), 1e-4)


def test_affine(given, check):
    """The affine part of a coupling; its own code has it in one line with the rest."""
    x, log_slope, offset = (given(f"affine/in/{name}") for name in "xst")
    check(x * log_slope.exp() + offset, "affine/out/h")
    check(bijections.per_sample(log_slope), "affine/out/logd", absolute_sum(log_slope))


def test_split_and_merge(picture, check):
    even, odd = bijections.split_columns(picture("split/in/x"))
    check(channels_last(even), "split/out/a")
    check(channels_last(odd), "split/out/b")
    check(channels_last(bijections.merge_columns(even, odd)), "split/out/merged")


@pytest.mark.parametrize("block", ["norm", "pointwise"])
def test_pairs_of_maps(picture, check, blocks, precision, block):
    published = under(blocks, f"{block}/params/")
    folder = "Norm_0/" if block == "norm" else "Pointwise_0/"
    state = dequantizer_parameters({folder + path: values for path, values in published.items()}, block)
    halves = [picture("pair/in/a"), picture("pair/in/b")]
    shape = tuple(halves[0].shape[1:])
    maps = [
        ActivationNorm(shape, published_behaviour=True) if block == "norm" else PointwiseMap(shape[0]) for _ in range(2)
    ]
    for half, half_map in enumerate(maps):
        prefix = f"steps.0.{'norms' if block == 'norm' else 'pointwise'}.{half}."
        half_map.load_state_dict(
            {name.removeprefix(prefix): values for name, values in state.items() if name.startswith(prefix)}
        )
        half_map.to(DTYPES[precision])
    for apply, prefix in ((lambda entry, x: entry(x), ""), (lambda entry, x: entry.inverse(x), "inv_")):
        results = [apply(half_map, half) for half_map, half in zip(maps, halves, strict=True)]
        check(channels_last(results[0][0]), f"{block}/out/{prefix}a")
        check(channels_last(results[1][0]), f"{block}/out/{prefix}b")
        sizes = sum(size_of_terms(half_map, half) for half_map, half in zip(maps, halves, strict=True))
        check(results[0][1] + results[1][1], f"{block}/out/{prefix}logd", sizes)


def test_activations(picture, check):
    x = picture("nn/in/x")
    check(channels_last(concat_elu(x)), "concat_elu/out")
    check(channels_last(gate(x)), "gate/out")


def test_layers(picture, check, blocks, precision):
    x, dtype = picture("nn/in/x"), DTYPES[precision]
    conv, nin = under(blocks, "conv_cifar/params/"), under(blocks, "nin/params/")
    check(channels_last(plain_layer(conv["c_W"], conv["c_b"], dtype)(x)), "conv_cifar/out")
    check(channels_last(plain_layer(nin["d_W"], nin["d_b"], dtype)(x)), "nin/out")
    wn = under(blocks, "conv_wn/params/")
    check(channels_last(normalized_layer(wn["c_V"], wn["c_g"], wn["c_b"], dtype)(x)), "conv_wn/out")
    norm, recorded = ChannelNorm(x.shape[1]), under(blocks, "layernorm/params/")
    norm.load_state_dict({"weight": recorded["ln_g"].flatten(), "bias": recorded["ln_b"].flatten()})
    check(channels_last(norm.to(dtype)(x)), "layernorm/out")


def load_block(module, blocks, block, name, prefix):
    """Load ``<block>/params/<name>_*`` by the names that the block has inside a coupling."""
    published = {
        f"MixLogisticAttnCoupling_0/block0_{prefix}" + path.removeprefix(name): values
        for path, values in under(blocks, f"{block}/params/").items()
    }
    state = dequantizer_parameters(published, block)
    inside = f"steps.0.coupling.blocks.0.{'attention' if prefix == 'attn' else 'convolution'}."
    module.load_state_dict({key.removeprefix(inside): values for key, values in state.items()})


@pytest.mark.parametrize(
    "block", ["gated_conv_nin_a", "gated_conv_noa", "gated_resnet_wn_nin_a", "gated_resnet_wn_noa"]
)
def test_gated_convolution(picture, check, blocks, precision, block):
    x, context = picture("nn/in/x"), picture("nn/in/a") if block.endswith("_a") else None
    channels = 0 if context is None else context.shape[1]
    module = GatedConvolution(x.shape[1], "_wn_" in block, channels)
    load_block(module, blocks, block, "g", "conv")
    check(channels_last(module.to(DTYPES[precision])(x, context)), f"{block}/out")


def test_gated_attention(picture, given, check, blocks, precision):
    x = picture("nn/in/x")
    module = GatedAttention(x.shape[1], int(blocks["nn/heads"]))
    load_block(module, blocks, "gated_attn", "at", "attn")
    check(channels_last(module.to(DTYPES[precision])(x, given("nn/in/pos_emb").permute(2, 0, 1))), "gated_attn/out")


@pytest.mark.parametrize("published", [True, False], ids=["published", "ours"])
@pytest.mark.parametrize("architecture", ["cifar", "imagenet"])
def test_coupling(picture, check, blocks, precision, architecture, published):
    """Where the recorded values do not reach the floors of the public logit, both forms of ours give them."""
    block, dtype = f"coupling_{architecture}", DTYPES[precision]
    n_filters, n_blocks, n_components, n_heads = blocks[f"{block}/cfg"].tolist()
    a, b, context = picture("pair/in/a"), picture("pair/in/b"), picture("nn/in/a")
    coupling = MixtureCoupling(
        tuple(a.shape[1:]), n_filters, n_blocks, n_components, n_heads, context.shape[1], architecture == "imagenet",
        published_behaviour=published,
    )  # fmt: skip
    recorded = {
        f"MixLogisticAttnCoupling_0/{path}": values for path, values in under(blocks, f"{block}/params/").items()
    }
    state = dequantizer_parameters(recorded, block)
    coupling.load_state_dict({name.removeprefix("steps.0.coupling."): values for name, values in state.items()})
    coupling.to(dtype)

    log_slope, offset, components = coupling.parameters_of_map(a, context)
    check(channels_last(log_slope), f"{block}/mid/s")
    check(channels_last(offset), f"{block}/mid/t")
    for name, part in zip(("logits", "means"), components, strict=False):
        check(channels_last(part), f"{block}/mid/{name}")
    expected = torch.from_numpy(blocks[f"{precision}/{block}/mid/logscales"]).clamp(min=SMALLEST_LOG_SCALE)
    assert_near(channels_last(components[2]), expected.numpy(), TOLERANCE[precision])
    below, _ = logistic_mixture.log_distribution(b, components)
    check(channels_last(below.exp()), f"{block}/mid/cdf")
    sizes = size_of_terms(coupling, a, b, context)
    log_density = logistic_mixture.log_density(b, components)
    cdf_log_determinant = bijections.per_sample(log_density)
    check(cdf_log_determinant, f"{block}/mid/cdf_logd", absolute_sum(log_density))
    rule = floored_log_odds if published else logistic_mixture.log_odds
    log_odds, log_derivative = rule(b, components)
    if not published and log_odds.abs().max() > LARGEST_LOG_ODDS[precision]:
        pytest.skip("the recorded values reach the floors of the public logit")
    check(channels_last(log_odds), f"{block}/mid/logit")
    check(bijections.per_sample(log_derivative) - cdf_log_determinant, f"{block}/mid/logit_logd", sizes)
    check(bijections.per_sample(log_slope), f"{block}/mid/affine_logd", absolute_sum(log_slope))

    transformed, log_determinant = coupling(a, b, context)
    check(channels_last(transformed), f"{block}/out/b")
    check(log_determinant, f"{block}/out/logd", sizes)
    inverse, log_determinant = coupling.inverse(a, picture(f"{block}/in/inv_b"), context)
    check(channels_last(inverse), f"{block}/out/inv_b")
    check(log_determinant, f"{block}/out/inv_logd", size_of_terms(coupling, a, inverse, context))


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_initial_weights(initial, precision, scale):
    dtype, tolerance = DTYPES[precision], TOLERANCE[precision]
    x = image(initial["in/x"], dtype)
    draws = {name: values.to(dtype) for name, values in under(initial, "").items() if name.endswith("_draw")}

    def check(actual, key):
        assert_near(actual, initial[f"{precision}/{key}"], tolerance)

    with torch.no_grad():
        for name in ("conv_cifar", "dense"):
            weight, other = 0.05 * draws[f"{name}/raw_W_draw"], 0.05 * draws[f"{name}/raw_b_draw"]
            layer = plain_layer(weight, torch.zeros(weight.shape[-1]), dtype)
            layer.init_scale = scale
            second = plain_layer(other, torch.zeros(weight.shape[-1]), dtype).weight
            layer.initialize(x, lambda sums: sums, second)
            recorded = layer.weight.permute(3, 2, 1, 0)
            check(recorded if name == "conv_cifar" else recorded[0, 0], f"{name}/scale{scale}/W")
            check(layer.bias, f"{name}/scale{scale}/b")
        direction = 0.05 * draws["conv_wn/raw_V_draw"]
        ones = torch.ones(direction.shape[-1])
        layer = normalized_layer(direction, ones, 0 * ones, dtype)
        layer.init_scale = scale
        layer.initialize(x, lambda sums: sums)
        check(layer.direction.permute(2, 3, 1, 0), f"conv_wn/scale{scale}/V")
        check(layer.gain, f"conv_wn/scale{scale}/g")
        check(layer.bias, f"conv_wn/scale{scale}/b")


def test_initial_norm(initial, precision):
    """The second half was recorded for a linear function of the input, which the recorded means tell."""
    x = image(initial["in/x"], DTYPES[precision])
    means = [-initial[f"f64/norm/norm{half}_b"] / initial[f"f64/norm/norm{half}_g"] for half in range(2)]
    slope, offset = np.polyfit(means[0].ravel(), means[1].ravel(), 1)
    for half, values in enumerate([x, slope * x + offset]):
        norm = ActivationNorm(tuple(x.shape[1:])).to(x.dtype)
        with torch.no_grad():
            norm.initialize(values, lambda sums: sums)
        for name, parameter in (("g", norm.gain), ("b", norm.bias)):
            recorded = initial[f"{precision}/norm/norm{half}_{name}"]
            assert_near(parameter.permute(1, 2, 0), recorded, TOLERANCE[precision])


def test_initial_map_of_the_channels(initial):
    for half in range(2):
        draw = torch.from_numpy(initial[f"pointwise/raw_W{half}_draw"])
        weight = torch.eye(len(draw)) + bijections.POINTWISE_DEVIATION * draw
        assert_near(weight, initial[f"f64/pointwise/W{half}"], TOLERANCE["f32"])
