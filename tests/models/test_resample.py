import pytest
import torch

from models.resample import BoxFilter, FIRFilter

TAPS = [(1, 3, 3, 1), (1, 2, 4, 3), (1, 1), (1, 5, 10, 10, 5, 1)]


def convolve(x: torch.Tensor, taps: tuple[int, ...], before: int, after: int) -> torch.Tensor:
    """Pad with zeros and convolve, entry by entry."""
    n = len(taps)
    rows, columns = x.shape
    padded = torch.zeros(rows + before + after, columns + before + after, dtype=x.dtype)
    padded[before : before + rows, before : before + columns] = x
    out = torch.zeros(padded.shape[0] - n + 1, padded.shape[1] - n + 1, dtype=x.dtype)
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            for a in range(n):
                for b in range(n):
                    out[i, j] += taps[a] * taps[b] * padded[i + n - 1 - a, j + n - 1 - b]
    return out / sum(taps) ** 2


@pytest.mark.parametrize("taps", TAPS)
def test_fir_filter_is_the_padded_convolution(taps):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 4, dtype=torch.float64)
    fir = FIRFilter(taps).double()
    n = len(taps)
    down, up, wider = fir.downsample(x), fir.upsample(x), fir.before_strided_convolution(x)
    assert down.shape == (2, 3, 3, 2)
    assert up.shape == (2, 3, 12, 8)
    for image in range(2):
        for channel in range(3):
            one = x[image, channel]
            expected = convolve(one, taps, n // 2 - 1, n // 2 - 1)[::2, ::2]
            torch.testing.assert_close(down[image, channel], expected)
            torch.testing.assert_close(wider[image, channel], convolve(one, taps, n // 2, n // 2))
            stuffed = torch.zeros(12, 8, dtype=torch.float64)
            stuffed[::2, ::2] = one
            torch.testing.assert_close(up[image, channel], 4 * convolve(stuffed, taps, n // 2, n // 2 - 1))


def test_constants_stay_constant_inside():
    fir = FIRFilter((1, 3, 3, 1))
    x = torch.full((1, 2, 8, 8), 3.0)
    torch.testing.assert_close(fir.downsample(x)[..., 1:-1, 1:-1], x[..., :2, :2])
    torch.testing.assert_close(fir.upsample(x)[..., 2:-2, 2:-2], torch.full((1, 2, 12, 12), 3.0))


def test_box_filter():
    x = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])
    assert BoxFilter().downsample(x).item() == 3.0
    assert BoxFilter().upsample(x)[0, 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 6, 6], [3, 3, 6, 6]]


def test_filter_is_not_part_of_the_state():
    assert FIRFilter((1, 3, 3, 1)).state_dict() == {}
