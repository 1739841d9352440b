"""Overlapping windows: what they cover, and the mean of what is predicted in them."""

import pytest
import torch

from guidance_lab.guidance.windows import crop, mean_of_windows, window_starts, windows


@pytest.mark.parametrize(
    ("size", "share", "overlap", "expected"),
    [
        (128, 0.75, 0.5, (96, [0, 32])),
        (128, 0.5, 0.5, (64, [0, 32, 64])),
        (128, 0.5, 0.0, (64, [0, 64])),
        (128, 1.0, 0.5, (128, [0])),
        (64, 0.75, 0.25, (48, [0, 16])),
        (8, 0.3, 0.5, (8, [0])),
        (30, 0.5, 0.5, (16, [0, 8, 14])),
    ],
)
def test_starts(size, share, overlap, expected):
    assert window_starts(size, share, overlap) == expected


@pytest.mark.parametrize("size", [8, 30, 64, 90, 128, 200])
@pytest.mark.parametrize("share", [0.1, 0.33, 0.5, 0.75, 0.95])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
def test_windows_cover_everything_with_at_least_the_overlap(size, share, overlap):
    window, starts = window_starts(size, share, overlap)
    assert starts[0] == 0 and starts[-1] == size - window
    assert starts == sorted(set(starts))
    assert window == size or share * size <= window < share * size + 8
    for start, following in zip(starts, starts[1:], strict=False):
        assert following - start <= max(8, window * (1 - overlap))  # starts lie on multiples of 8
        assert following <= start + window


@pytest.mark.parametrize(("share", "overlap"), [(0.0, 0.5), (1.1, 0.5), (0.5, -0.1), (0.5, 1.0)])
def test_settings_out_of_range(share, overlap):
    with pytest.raises(ValueError):
        window_starts(64, share, overlap)


def test_the_mean_of_a_function_of_each_cell_is_that_function():
    x = torch.randn(2, 3, 64, 40)
    boxes = windows(64, 40, 0.5, 0.5)
    assert len(boxes) > 4
    assert torch.allclose(mean_of_windows(x, boxes, lambda box: crop(x, box) * 2 + 1), x * 2 + 1)


def test_the_mean_counts_every_window_that_sees_a_cell():
    x = torch.zeros(1, 1, 16, 16, dtype=torch.float16)
    boxes = windows(16, 16, 0.5, 0.0)
    values = {box: float(i) for i, box in enumerate([*boxes, (4, 4, 8, 8)])}
    out = mean_of_windows(x, list(values), lambda box: torch.full((1, 1, *box[2:]), values[box], dtype=torch.float16))
    assert out.dtype == torch.float16
    assert out[0, 0, 0, 0] == 0.0 and out[0, 0, 15, 15] == 3.0
    assert out[0, 0, 5, 5] == (0.0 + 4.0) / 2 and out[0, 0, 11, 11] == (3.0 + 4.0) / 2
