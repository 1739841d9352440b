"""Windows and weight schedules over sigma."""

import math

import pytest
import torch
from reference.schedule import weight_at

from guidance_lab.guidance.schedule import (
    Window,
    float32,
    in_window,
    next_sigma,
    percent_at,
    step_index,
    weight_over_time,
)


def percent_to_sigma(percent: float) -> float:
    """A schedule in double precision whose sigmas are no float32 numbers, like the host's for eps models."""
    return 999999999.9 if percent <= 0 else 0.0 if percent >= 1 else 14.6146 * math.exp(-6.2 * percent) / 1.1


def test_both_ends_belong_to_the_window_after_float32_rounding():
    bounds = Window(0.2, 0.6).sigmas(percent_to_sigma)
    for percent in (0.2, 0.6):
        exact = percent_to_sigma(percent)
        assert float32(exact) != exact  # else this test shows nothing
        assert in_window(float32(exact), bounds)
    assert not in_window(float32(percent_to_sigma(0.2) * 1.0001), bounds)
    assert not in_window(float32(percent_to_sigma(0.6) * 0.9999), bounds)


def test_the_whole_sampling():
    window = Window()
    bounds = window.sigmas(percent_to_sigma)
    assert window.is_everything
    assert in_window(14.6146, bounds) and in_window(0.0, bounds) and in_window(1e5, bounds)


def test_a_window_of_one_point_is_that_sigma():
    bounds = Window(0.5, 0.5).sigmas(percent_to_sigma)
    assert in_window(float32(percent_to_sigma(0.5)), bounds)
    assert not in_window(percent_to_sigma(0.51), bounds)


@pytest.mark.parametrize(
    ("start", "end"), [(0.6, 0.5), (-0.1, 1.0), (0.0, 1.1), (float("nan"), 1.0), (0.0, float("nan"))]
)
def test_impossible_windows_are_refused(start, end):
    with pytest.raises(ValueError, match="percent"):
        Window(start, end)


def test_the_step_of_a_sigma_is_the_one_whose_span_holds_it():
    sigmas = [4.0, 2.0, 1.0, 0.0]
    found = {sigma: step_index(sigmas, sigma) for sigma in (9.0, 4.0, 3.0, 2.0, 2.0 * (1 + 9e-7), 1.5, 1.0, 0.5, 0.0)}
    assert list(found.values()) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert step_index([2.0, 1.0 * (1 - 1e-6), 0.0], 1.0) == 1  # the rounding that is allowed, to the last bit


def test_the_next_sigma_is_the_next_lower_level():
    sigmas = torch.tensor([4.0, 2.0, 1.0, 0.0])
    asked = torch.tensor([9.0, 4.0, 3.0, 2.0, 2.0 * (1 + 9e-7), 1.5, 1.0, 0.5])
    assert next_sigma(sigmas, asked).tolist() == [4.0, 2.0, 2.0, 1.0, 1.0, 1.0, 0.0, 0.0]


def test_a_schedule_is_linear_in_log_sigma_and_flat_beyond_its_ends():
    knots = [(10.0, 1.0), (1.0, 3.0), (0.1, 2.0)]
    assert weight_at(50.0, knots) == 1.0
    assert weight_at(10.0, knots) == 1.0
    assert weight_at(10**0.5, knots) == pytest.approx(2.0)
    assert weight_at(1.0, knots) == 3.0
    assert weight_at(10**-0.5, knots) == pytest.approx(2.5)
    assert weight_at(0.0, knots) == 2.0


@pytest.mark.parametrize("knots", [[], [(1.0, 2.0), (3.0, 2.0)], [(1.0, 2.0), (1.0, 3.0)], [(1.0, 2.0), (0.0, 2.0)]])
def test_impossible_schedules_are_refused(knots):
    with pytest.raises(ValueError, match="schedule"):
        weight_at(1.0, knots)


def test_a_percent_is_the_inverse_of_its_sigma():
    falls = lambda percent: 14.6 * (1 - percent) ** 2  # noqa: E731
    for percent in (0.0, 0.001, 0.25, 0.5, 0.999, 1.0):
        assert percent_at(falls(percent), falls) == pytest.approx(percent, abs=1e-6)
    assert percent_at(99.0, falls) == pytest.approx(0.0, abs=1e-6)  # above the noisiest
    assert percent_at(0.0, lambda percent: 0.0 if percent >= 1 else 5.0) == pytest.approx(1.0)


def test_a_weight_over_time_is_exact_at_both_ends():
    assert [weight_over_time(weight, 1.0, 1.0) for weight in (2.3, 0.7, 1.1)] == [2.3, 0.7, 1.1]
    assert weight_over_time(2.3, 0.0, 1.0) == 1.0
    assert weight_over_time(3.0, 0.5, 1.0) == 2.0
    assert weight_over_time(0.4, 0.5) == 0.2
