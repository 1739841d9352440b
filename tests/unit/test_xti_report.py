"""The report on learned tokens, and the pictures of report and training run."""

import numpy as np
import pytest
import torch

from guidance_lab.plots import chart
from guidance_lab.xti import XTI, info_plot, loss_plot
from guidance_lab.xti.density import negative_log_density, scott_bandwidth
from guidance_lab.xti.layers import named_table
from guidance_lab.xti.report import report
from guidance_lab.xti.training import Losses

SDXL = named_table("sdxl")


@pytest.fixture
def vocabulary(generator):
    return 0.1 * torch.randn(60, 8, generator=generator)


WORDS = tuple(f"word{i}" for i in range(60))


@pytest.fixture
def xti(vocabulary):
    """Layer i's clip_g columns are three times word i and word 30 + i; SDXL's layout in small."""
    rows = {
        name: torch.cat([torch.full((2, 4), 0.5), torch.stack([3 * vocabulary[i], vocabulary[30 + i]])], dim=1)
        for i, name in enumerate(SDXL.names)
    }
    return XTI(SDXL, rows, "test", {"clip_l": 4, "clip_g": 8})


def test_the_report_knows_norms_densities_and_words(xti, vocabulary):
    found = report(xti, "clip_g", vocabulary, WORDS, count=3)
    assert [layer.name for layer in found.layers] == list(SDXL.names)
    for i, layer in enumerate(found.layers):
        rows = torch.stack([3 * vocabulary[i], vocabulary[30 + i]])
        assert layer.norms == pytest.approx(rows.norm(dim=1).tolist(), rel=1e-5)
        expected = negative_log_density(rows, vocabulary, scott_bandwidth(vocabulary)) / 8
        assert layer.densities == pytest.approx(expected.tolist(), rel=1e-4)
        assert [len(nearest) for nearest in layer.nearest] == [3, 3]
        assert [nearest[0][0] for nearest in layer.nearest] == [f"word{i}", f"word{30 + i}"]
        assert all(nearest[0][1] == pytest.approx(1, abs=1e-5) and nearest[1][1] < 0.999 for nearest in layer.nearest)


def test_deciles_hold_most_words(xti, vocabulary):
    found = report(xti, "clip_g", vocabulary, WORDS)
    norms = vocabulary.norm(dim=1)
    inside = (norms >= found.word_norms[0]) & (norms <= found.word_norms[1])
    assert 0.75 < inside.float().mean() < 0.85
    assert found.word_densities[0] < found.word_densities[1] < max(found.layers[0].densities)


def test_the_text_has_a_line_per_vector(xti, vocabulary):
    lines = report(xti, "clip_g", vocabulary, WORDS).text().splitlines()
    assert len(lines) == 1 + 2 * len(SDXL)
    assert lines[0].startswith("clip_g: words have norms")
    assert lines[1].startswith("IN04 [0]") and "word0 1.00" in lines[1]
    assert lines[-1].startswith("OUT05 [1]") and "word40 1.00" in lines[-1]


def test_a_vocabulary_of_another_width_is_refused(xti, vocabulary):
    with pytest.raises(ValueError, match="clip_l tokens are 4 wide and the words of this CLIP 8"):
        report(xti, "clip_l", vocabulary, WORDS)


def blue_rows(picture) -> np.ndarray:
    """Rows of the picture in which the plot's blue appears."""
    pixels = np.asarray(picture, dtype=np.int32)
    return np.nonzero((np.abs(pixels - np.array(chart.BLUE)).sum(-1) < 30).any(1))[0]


def test_a_longer_token_is_drawn_higher(xti, vocabulary):
    picture = info_plot.plot(report(xti, "clip_g", vocabulary, WORDS))
    assert picture.size == (1024, 640) and picture.mode == "RGB"
    rows = dict.fromkeys(SDXL.names, torch.cat([torch.zeros(4), vocabulary[5]])[None])
    same = info_plot.plot(report(XTI(SDXL, rows, "test", xti.encoders), "clip_g", vocabulary, WORDS))
    spread = [np.ptp(found[found < 240]) for found in map(blue_rows, (picture, same))]  # of the norm panel
    assert spread[1] < 12 < spread[0]


def test_the_plot_takes_seventy_layers(vocabulary):
    table = named_table("sdxl", per_block=True)
    xti = XTI(table, dict.fromkeys(table.names, vocabulary[:1]), "test", {"clip_g": 8})
    assert info_plot.plot(report(xti, "clip_g", vocabulary, WORDS)).size == (1024, 640)


def test_the_loss_curve_falls_when_the_loss_does():
    falling = [Losses(1 - i / 100, 0.0, 0.4) for i in range(100)]
    rising = [Losses(i / 100, 0.0, 0.4) for i in range(1, 101)]
    for history, downwards in ((falling, True), (rising, False)):
        pixels = np.asarray(loss_plot.plot(history, 0.39), dtype=np.int32)
        blue = np.abs(pixels - np.array(chart.BLUE)).sum(-1) < 30
        first, last = (np.nonzero(blue[:, column])[0].mean() for column in (100, 990))
        assert (last > first) == downwards
    with pytest.raises(ValueError, match="no step was trained"):
        loss_plot.plot([], 0.39)


def test_one_step_and_a_negative_regulariser_are_drawn():
    assert loss_plot.plot([Losses(0.2, -3.0, 0.5)], 0.39, first=10, seconds=2.0).size == (1024, 640)


def test_running_mean():
    assert loss_plot.running_mean([4.0, 2.0, 6.0, 0.0], 2) == pytest.approx([4, 3, 4, 3])


@pytest.mark.parametrize(("low", "high", "expected"), [
    (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (0, 0.43, [0, 0.1, 0.2, 0.3, 0.4, 0.5]), (-3, 5, [-4, -2, 0, 2, 4, 6]),
    (2, 2.9, [2, 2.2, 2.4, 2.6, 2.8, 3.0]),
])  # fmt: skip
def test_ticks_are_round_and_enclose(low, high, expected):
    assert chart.ticks(low, high) == pytest.approx(expected)


def test_ticks_of_a_single_value():
    for value in (0.0, 5.0, -2.0):
        marks = chart.ticks(value, value)
        assert marks[0] <= value < marks[-1]
