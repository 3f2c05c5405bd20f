"""The U-Nets of discrete diffusion: what recorded numbers of whole networks do not show."""

import copy
import dataclasses

import pytest
import torch

from models.ddpm_unet import DDPMUNet, DDPMUNetSettings
from models.embeddings import LabelEmbedding
from models.improved_unet import ImprovedUNet, ImprovedUNetSettings
from util.errors import UsageError

SMALL = {"image_channels": 1, "image_size": 8, "n_channels": 16, "n_groups": 4, "n_resblocks": 1, "dropout": 0.0}
DDPM = DDPMUNetSettings(**SMALL, ch_mult=(1, 2), attn_resolutions=(4,))
IMPROVED = ImprovedUNetSettings(**SMALL, ch_mult=(1, 2), attn_resolutions=(8,))
VARIANTS = [
    DDPM,
    dataclasses.replace(DDPM, image_channels=3, attn_resolutions=(8, 4), n_resblocks=2),
    dataclasses.replace(DDPM, ch_mult=(1,), attn_resolutions=()),
    dataclasses.replace(DDPM, ch_mult=(1, 1, 2, 3), attn_resolutions=(1,)),
    IMPROVED,
    dataclasses.replace(IMPROVED, image_channels=3, attn_resolutions=(8, 4), n_resblocks=2, num_heads=2),
    dataclasses.replace(IMPROVED, ch_mult=(2,), attn_resolutions=(), use_scale_shift_norm=False),
    dataclasses.replace(IMPROVED, learn_sigma=True, ch_mult=(2, 1, 3), attn_resolutions=(2, 4)),
]


def make(settings):
    torch.manual_seed(0)
    return (DDPMUNet if isinstance(settings, DDPMUNetSettings) else ImprovedUNet)(settings)


def lively(settings):
    """A network whose last layers are not almost zero, so that every part shows in the output."""
    network = make(settings)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.abs().max() < 1e-3:
                parameter.normal_(0.0, 0.1)
    return network


def inputs(settings):
    torch.manual_seed(1)
    size = settings.image_size
    return torch.randn(3, settings.image_channels, size, size), torch.tensor([0, 300, 999])


@pytest.mark.parametrize("settings", VARIANTS)
def test_shapes_gradients_and_float64(settings):
    network = lively(settings)
    x, labels = inputs(settings)
    y = network(x, labels)
    assert y.shape == x.shape
    y.square().sum().backward()
    unused = settings.image_channels if getattr(settings, "learn_sigma", False) else None
    for name, parameter in network.named_parameters():
        gradient = parameter.grad
        assert gradient is not None, name
        assert gradient.isfinite().all(), name
        assert gradient.abs().max() > 0, name
        if unused and name.startswith("out.2"):
            assert (gradient[unused:] == 0).all()
    exact = copy.deepcopy(network).double()(x.double(), labels)
    torch.testing.assert_close(y.double(), exact, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("settings", [DDPM, IMPROVED])
def test_samples_do_not_mix_and_labels_matter(settings):
    network = lively(settings)
    x, labels = inputs(settings)
    y = network(x, labels)
    for i in range(3):
        torch.testing.assert_close(network(x[i : i + 1], labels[i : i + 1]), y[i : i + 1], rtol=1e-4, atol=1e-5)
    assert (network(x, labels.roll(1)) - y).abs().max() > 1e-3
    assert (network(x, labels + 0.75) - y).abs().max() > 1e-5
    torch.testing.assert_close(network(x, labels.double()), y)


@pytest.mark.parametrize("settings", [DDPM, IMPROVED])
def test_a_new_network_predicts_almost_nothing(settings):
    assert make(settings)(*inputs(settings)).abs().max() < 1e-3


@pytest.mark.parametrize("settings", [DDPM, IMPROVED])
def test_dropout_in_training_only(settings):
    network = lively(dataclasses.replace(settings, dropout=0.5))
    x, labels = inputs(settings)
    first, second = network(x, labels), network(x, labels)
    assert (first - second).abs().max() > 1e-3
    network.eval()
    torch.testing.assert_close(network(x, labels), network(x, labels))


@pytest.mark.parametrize("settings", [DDPM, IMPROVED])
def test_channels_last_and_autocast(settings):
    network = lively(settings)
    x, labels = inputs(settings)
    y = network(x, labels)
    last = copy.deepcopy(network).to(memory_format=torch.channels_last)
    torch.testing.assert_close(last(x.to(memory_format=torch.channels_last), labels), y, rtol=1e-3, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(network(x, labels).float(), y, rtol=0.2, atol=0.2)


def test_embedding_of_labels():
    labels = torch.tensor([0.0, 3.0, 700.25])
    ddpm = LabelEmbedding(8, spacing=3, cosines_first=False)(labels)
    frequencies = torch.tensor([10000.0 ** (-k / 3) for k in range(4)])
    angle = labels[:, None] * frequencies
    torch.testing.assert_close(ddpm, torch.cat([angle.sin(), angle.cos()], 1), rtol=1e-4, atol=1e-4)
    improved = LabelEmbedding(8, spacing=4, cosines_first=True)(labels)
    angle = labels[:, None] * torch.tensor([10000.0 ** (-k / 4) for k in range(4)])
    torch.testing.assert_close(improved, torch.cat([angle.cos(), angle.sin()], 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "change", "word"),
    [
        (DDPM, {"ch_mult": (2, 2)}, "ch_mult"),
        (DDPM, {"ch_mult": ()}, "ch_mult"),
        (DDPM, {"image_size": 9}, "image_size"),
        (DDPM, {"attn_resolutions": (5,)}, "attn_resolutions"),
        (DDPM, {"n_groups": 3}, "n_groups"),
        (DDPM, {"n_channels": 2}, "n_channels"),
        (DDPM, {"group_norm_eps": 0.0}, "group_norm_eps"),
        (DDPM, {"dropout": 1.0}, "dropout"),
        (DDPM, {"n_resblocks": 0}, "n_resblocks"),
        (IMPROVED, {"num_heads": 3}, "num_heads"),
        (IMPROVED, {"num_heads": 0}, "num_heads"),
    ],
)
def test_impossible_settings_are_refused(settings, change, word):
    with pytest.raises(UsageError, match=word):
        dataclasses.replace(settings, **change)
