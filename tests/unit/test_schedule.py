"""Windows and weight schedules over sigma."""

import math

import pytest

from guidance.schedule import Window, float32, in_window, weight_at


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


@pytest.mark.parametrize(("start", "end"), [(0.6, 0.5), (-0.1, 1.0), (0.0, 1.1), (float("nan"), 1.0), (0.0, float("nan"))])
def test_impossible_windows_are_refused(start, end):
    with pytest.raises(ValueError, match="percent"):
        Window(start, end)


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
