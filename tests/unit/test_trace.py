"""The record of a run against closed forms, and its picture."""

import json
import math

import numpy as np
import pytest
import torch

from guidance_lab.guidance.schedule import step_index
from guidance_lab.guidance.trace import (
    CFG,
    OTHER,
    CostTrace,
    Evaluation,
    NoteTrace,
    Record,
    TermTrace,
    account,
    cosine,
    relative_size,
)
from guidance_lab.guidance.trace_plot import SIZE, plot
from guidance_lab.plots.chart import ticks


def batch(*vectors: list[float]) -> torch.Tensor:
    return torch.tensor(vectors)


def test_relative_size_is_a_mean_of_ratios_over_the_batch():
    assert relative_size(batch([3.0, 4.0], [0.0, 1.0]), batch([0.0, 10.0], [1.0, 0.0])) == pytest.approx(
        (0.5 + 1.0) / 2
    )


def test_cosine_of_known_angles():
    assert cosine(batch([1.0, 0.0]), batch([1.0, 1.0])) == pytest.approx(math.cos(math.pi / 4))
    assert cosine(batch([1.0, 0.0], [2.0, 0.0]), batch([0.0, 3.0], [-1.0, 0.0])) == pytest.approx(-0.5)


def test_numbers_without_a_value_are_none():
    assert cosine(batch([0.0, 0.0]), batch([1.0, 0.0])) is None
    assert relative_size(batch([1.0, 0.0]), batch([0.0, 0.0])) is None


def test_account_of_cfg_and_autoguidance():
    """C = (1, 0), U = (0, 0), B = (1, -1): at cfg 3 and w = 2 CFG adds 2 (C - U) and autoguidance C - B, at right
    angles.
    """
    cond, uncond, guide = batch([1.0, 0.0]), batch([0.0, 0.0]), batch([1.0, -1.0])
    term = cond - guide
    denoised = cond + 2 * (cond - uncond) + term
    cfg, autoguidance = account(cond, uncond, 3.0, [("Autoguidance", term, 2.0)], denoised)
    assert cfg == TermTrace(CFG, 2.0, 1.0, 3.0)
    assert autoguidance == TermTrace("Autoguidance", 1.0, 0.0, 2.0)


def test_account_without_cfg_has_no_direction():
    cond, term = batch([2.0, 0.0]), batch([0.0, 1.0])
    assert account(cond, None, 1.0, [("Autoguidance", term, 1.5)], cond + term) == (
        TermTrace("Autoguidance", 0.5, None, 1.5),
    )


def test_account_below_cfg_1_points_against_the_direction():
    cond, uncond = batch([1.0, 0.0]), batch([0.0, 0.0])
    assert account(cond, uncond, 0.5, [], 0.5 * cond) == (TermTrace(CFG, 0.5, -1.0, 0.5),)


def test_account_of_a_term_outside_its_window():
    cond = batch([1.0, 0.0])
    assert account(cond, None, 1.0, [("Autoguidance", None, 1.0)], cond) == (TermTrace("Autoguidance", 0.0, None, 1.0),)


def test_account_adds_up_what_one_name_added_twice():
    cond, part = batch([1.0, 0.0]), batch([0.0, 0.5])
    traced = account(cond, None, 1.0, [("A", part, 2.0), ("A", None, 2.0), ("A", part, 2.0)], cond + 2 * part)
    assert traced == (TermTrace("A", 1.0, None, 2.0),)


def test_account_shows_what_other_nodes_did():
    cond = batch([1.0, 0.0])
    assert account(cond, None, 1.0, [], 1.25 * cond) == (TermTrace(OTHER, 0.25, None, None),)
    assert account(cond, None, 1.0, [], cond * (1 + 1e-6)) == ()


def test_account_of_a_broken_prediction_is_still_json():
    cond = batch([1.0, float("nan")])
    record = Record([1.0, 0.0], [Evaluation(0, 1.0, 0.1, account(cond, None, 1.0, [], cond), ())])
    assert json.loads(record.to_json())["evaluations"][0]["terms"][0]["size"] is None


@pytest.mark.parametrize(
    ("sigma", "step"), [(14.6, 0), (10.0, 0), (8.0, 1), (8.0000001, 1), (3.0, 1), (1.0, 2), (0.5, 2)]
)
def test_step_is_found_by_sigma(sigma, step):
    assert step_index([14.6, 8.0, 1.0, 0.0], sigma) == step


def test_summary_is_one_line():
    terms = (
        TermTrace(CFG, 0.123, 1.0, 4.0),
        TermTrace("Autoguidance", 0.05, 0.1, 2.0),
        TermTrace(OTHER, None, None, None),
    )
    assert Evaluation(2, 4.4203, 0.1, terms, ()).summary() == "step 3, sigma 4.42: CFG 12 %, Autoguidance 5 %"
    assert Evaluation(0, 14.6, 0.1, (), ()).summary() == "step 1, sigma 14.6: no guidance"
    noted = Evaluation(0, 14.6, 0.1, (), (), (NoteTrace("Captions", "a red cube"),))
    assert noted.summary() == "step 1, sigma 14.6: no guidance; Captions: a red cube"


def made_up(steps: int, sizes: dict[str, list[float]], with_cfg: bool = True) -> Record:
    sigmas = [14.6 * (1 - i / steps) for i in range(steps + 1)]
    record = Record(sigmas)
    for i in range(steps):
        terms = tuple(
            TermTrace(name, size[i], math.cos(i / steps * 2 + k) if with_cfg else None, 2.0)
            for k, (name, size) in enumerate(sizes.items())
        )
        costs = (CostTrace("model", 1, 2.0, 0.5), CostTrace("Autoguidance", 1, 1.0, 0.25))
        record.evaluations.append(Evaluation(i, sigmas[i], 0.8, terms, costs))
    return record


def test_totals_and_json():
    record = made_up(4, {CFG: [0.1, 0.2, 0.3, 0.4]})
    assert record.totals() == [CostTrace("model", 4, 8.0, 2.0), CostTrace("Autoguidance", 4, 4.0, 1.0)]
    read = json.loads(record.to_json())
    assert [e["terms"][0]["size"] for e in read["evaluations"]] == [0.1, 0.2, 0.3, 0.4]
    assert read["sigmas"] == record.sigmas
    record.evaluations[0] = Evaluation(0, 14.6, 0.1, (), (), (NoteTrace("Captions", "a cube"),))
    assert json.loads(record.to_json())["evaluations"][0]["notes"] == [{"name": "Captions", "text": "a cube"}]
    assert read["totals"][1] == {"name": "Autoguidance", "calls": 4, "predictions": 4.0, "seconds": 1.0}


def rows_of(image, blue: bool) -> list[int]:
    """Rows of the top panel in which the first curve (blue) or the second (orange) is seen anywhere."""
    red, _, other = np.moveaxis(np.asarray(image, dtype=int)[100:322, 90:1000], -1, 0)
    return np.flatnonzero(((other - red if blue else red - other) > 120).any(1)).tolist()


def test_plot_puts_the_larger_term_higher():
    image = plot(made_up(8, {CFG: [0.4] * 8, "Autoguidance": [0.1] * 8}))
    assert image.size == SIZE == (1024, 640)
    cfg, autoguidance = rows_of(image, blue=True), rows_of(image, blue=False)
    assert cfg and autoguidance
    assert max(cfg) < min(autoguidance)


@pytest.mark.parametrize("steps", [1, 20, 400])
def test_plot_of_any_length(steps):
    image = plot(made_up(steps, {"Autoguidance": [0.07] * steps}, with_cfg=False))
    assert rows_of(image, blue=True)


def test_plot_of_a_run_in_which_nothing_acted():
    record = Record([1.0, 0.0], [Evaluation(0, 1.0, 0.5, (), (CostTrace("model", 1, 1.0, 0.5),))])
    assert plot(record).size == SIZE


def test_plot_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no model evaluation"):
        plot(Record([1.0, 0.0]))


@pytest.mark.parametrize(
    ("highest", "expected"),
    [(0.0, [0, 1]), (1.0, [0, 0.2, 0.4, 0.6, 0.8, 1]), (37.0, [0, 10, 20, 30, 40]), (0.012, [0, 0.005, 0.01, 0.015])],
)
def test_ticks_are_round_and_reach_the_highest(highest, expected):
    assert ticks(0.0, highest) == pytest.approx(expected)
