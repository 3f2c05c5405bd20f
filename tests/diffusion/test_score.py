"""What the network is given, and the precision of what comes out."""

import pytest
import torch

from diffusion.continuous.kernel import noise_multiplier
from diffusion.continuous.score import make_score
from tests.diffusion.settings import PROCESSES

CLD = PROCESSES["CLD, constant beta"]
T = torch.tensor([1e-4, 0.6], dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("mixed", [False, True])
def test_score_is_at_least_float32_whatever_the_network_computes_in(dtype, mixed):
    def network(u, t):
        assert u.dtype == t.dtype == torch.float32
        return u[:, :2].to(dtype)

    u = torch.ones(2, 4, dtype=torch.float32)
    assert make_score(CLD, network, mixed=mixed)(u, T).dtype == torch.float32
    expected = torch.float64 if mixed else torch.float32
    assert make_score(CLD, network, mixed=mixed)(u.double(), T).dtype == expected


def test_mixed_score_of_a_silent_network_is_exact_for_standard_normal_data():
    process = PROCESSES["VP"]
    u = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    score = make_score(process, lambda u, t: torch.zeros_like(u), mixed=True)
    assert torch.equal(score(u, T), -u)


def test_plain_score_is_the_multiplier_times_the_output():
    u = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    score = make_score(CLD, lambda u, t: u[:, :2] + t[:, None, None, None], mixed=False)
    expected = noise_multiplier(CLD, T)[:, None, None, None] * (u[:, :2] + T[:, None, None, None])
    torch.testing.assert_close(score(u, T).double(), expected, rtol=1e-6, atol=0)
