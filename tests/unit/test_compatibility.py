"""docs/compatibility.md is made of the report of a test run, and of the tests in it that passed."""

from tools import compatibility

CASE = """<testcase name="{0}"><properties><property name="compatibility" value="{1}"/></properties>{2}</testcase>"""
CASES = (
    ("a", "family&#9;Pair&#9;Flux&#9;works", ""),
    ("b", "family&#9;Pair&#9;SD3&#9;works", '<failure message="no"/>'),
    ("c", "family&#9;Layers&#9;SD3&#9;It cannot.", ""),
    ("d", "samplers&#9;euler&#9;Pair&#9;works", ""),
)
REPORT = "<testsuites><testsuite>" + "".join(CASE.format(*case) for case in CASES) + "</testsuite></testsuites>"


def test_only_passed_tests_make_a_cell(tmp_path):
    path = tmp_path / "report.xml"
    path.write_text(REPORT)
    cells = compatibility.read(path)
    assert cells["family"] == {("Pair", "Flux"): "works", ("Layers", "SD3"): "It cannot."}
    text = compatibility.written(cells)
    assert "| Pair | works |  |" in text and "| Layers |  | refused (1) |" in text and "1. It cannot." in text
    assert "With Pair, 1 of 1 work: euler." in text
