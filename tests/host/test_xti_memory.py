"""The memory of an XTI training on the help pages is what the script counts."""

from conftest import ROOT

from guidance_lab.experiments.benchmarks.xti_memory import CASES, rows


def test_the_pages_have_the_counted_figures():
    found = rows()
    for name, full, less in zip(CASES, found[::2], found[1::2], strict=True):
        assert less["unet_gib"] < 0.3 * full["unet_gib"]
        figures = [full["weights_gib"], full["unet_gib"], less["unet_gib"], full["text_gib"], full["together_gib"]]
        line = " | ".join(f"{figure:.2f}" for figure in [*figures, less["together_gib"]])
        for page in ("GuidanceLab_XTITrain.md", "GuidanceLab_XTITrain/ja.md"):
            text = (ROOT / "web" / "docs" / page).read_text(encoding="utf-8")
            assert f"| {name.replace(', ', '、') if 'ja' in page else name} | {line} |" in text


def test_the_count_is_that_of_the_parts():
    """Weights of SD1.5: 859.5 million numbers of the U-net and 123.6 of CLIP-L with its projection, two bytes each."""
    (row, *_) = rows()
    assert abs(row["weights_gib"] * 2**30 / 2 / 1e6 - 983.1) < 1.5
    assert row["together_gib"] == row["weights_gib"] + row["unet_gib"] + row["text_gib"]
