import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F

from models.ncsnpp import NCSNpp, NCSNppSettings
from util.errors import UsageError

SMALL = NCSNppSettings(
    in_channels=2,
    out_channels=1,
    image_size=8,
    n_channels=16,
    ch_mult=(1, 2),
    n_resblocks=1,
    attn_resolutions=(4,),
)
VARIANTS = [
    SMALL,
    dataclasses.replace(SMALL, progressive_input="none"),
    dataclasses.replace(SMALL, progressive_input="none", use_fir=False, embedding_type="positional"),
    dataclasses.replace(SMALL, attn_resolutions=(8, 4), n_resblocks=2, in_channels=3, out_channels=3),
    dataclasses.replace(SMALL, ch_mult=(1,), attn_resolutions=()),
    dataclasses.replace(SMALL, fir_kernel=(1, 5, 10, 10, 5, 1)),
]


def lively(settings: NCSNppSettings) -> NCSNpp:
    """A network whose last layers are not almost zero, so that every part shows in the output."""
    torch.manual_seed(0)
    return NCSNpp(dataclasses.replace(settings, init_scale=1.0, dropout=0.0))


def inputs(settings: NCSNppSettings) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    size = settings.image_size
    return torch.randn(3, settings.in_channels, size, size), torch.tensor([1e-5, 0.3, 1.0])


@pytest.mark.parametrize("settings", VARIANTS)
def test_shapes_gradients_and_float64(settings):
    network = lively(settings)
    u, t = inputs(settings)
    y = network(u, t)
    assert y.shape == (3, settings.out_channels, settings.image_size, settings.image_size)
    y.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name
    exact = copy.deepcopy(network).double()(u.double(), t.double())
    torch.testing.assert_close(y.double(), exact, rtol=1e-3, atol=1e-3)


def test_samples_do_not_mix_and_time_matters():
    network = lively(SMALL)
    u, t = inputs(SMALL)
    y = network(u, t)
    torch.testing.assert_close(network(u[1:2], t[1:2]), y[1:2], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(network(u, t.flip(0)), y, atol=1e-2)


def test_initial_output_is_almost_zero():
    torch.manual_seed(0)
    assert NCSNpp(SMALL)(*inputs(SMALL)).abs().max() < 1e-3


def test_channels_last_and_bfloat16():
    network = lively(SMALL)
    u, t = inputs(SMALL)
    y = network(u, t)
    network = network.to(memory_format=torch.channels_last)
    torch.testing.assert_close(network(u.to(memory_format=torch.channels_last), t), y, rtol=1e-4, atol=1e-4)
    embeddings = []
    network.all_modules[2].register_forward_hook(lambda _module, _inputs, output: embeddings.append(output))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = network(u, t)
    rounded.float().sum().backward()
    assert embeddings[0].dtype == torch.float32
    assert F.mse_loss(rounded.float(), y) < 1e-3 * y.square().mean()


def test_dropout_is_for_training_only():
    torch.manual_seed(0)
    network = NCSNpp(dataclasses.replace(SMALL, init_scale=1.0, dropout=0.5))
    u, t = inputs(SMALL)
    assert not torch.equal(network(u, t), network(u, t))
    network.eval()
    assert torch.equal(network(u, t), network(u, t))


def test_learns():
    """A few steps of regression on a function of image and time reduce the error by a factor of ten."""
    torch.manual_seed(0)
    network = NCSNpp(dataclasses.replace(SMALL, dropout=0.0, fourier_scale=0.1))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        u, t = torch.randn(16, 2, 8, 8), torch.rand(16) + 0.01
        target = t[:, None, None, None] * u[:, :1] - u[:, 1:]
        loss = F.mse_loss(network(u, t), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"attn_resolutions": (4, 16)},
            "16 does not occur with image_size 8 and 2 levels; choose among 8, 4",
        ),
        ({"image_size": 9, "attn_resolutions": ()}, "image_size 9 cannot be halved 1 times"),
        ({"n_channels": 18}, "a layer of 18 channels"),
        ({"n_channels": 132}, "a layer of 132 channels"),
        ({"n_channels": 2}, "a layer of 2 channels"),
        ({"ch_mult": ()}, "ch_mult"),
        ({"n_resblocks": 0}, "n_resblocks is 0"),
        ({"use_fir": False}, "needs use_fir"),
        ({"fir_kernel": (1, 2, 1)}, "3 taps"),
        ({"fir_kernel": (1, -1)}, "add up to 0"),
        ({"progressive_input": "sum"}, "'sum'"),
        ({"embedding_type": "rotary"}, "'rotary'"),
        ({"embedding_type": "positional", "n_channels": 5}, "n_channels 5"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_bad_settings_are_found_without_building(change, message):
    with pytest.raises(UsageError, match=message) as caught:
        dataclasses.replace(SMALL, **change)
    assert "\n" not in str(caught.value)
