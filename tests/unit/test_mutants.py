"""The list of `tools/mutants.py` is one of changes that can be made and of tests that are there; running it is not
quick.
"""

import ast

import pytest

from tools.host import ROOT
from tools.mutants import MUTANTS, killing


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_change_can_be_made_and_its_test_is_there(mutant):
    text = (ROOT / mutant.file).read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1
    changed = ast.parse(text.replace(mutant.old, mutant.new))
    assert ast.dump(changed) != ast.dump(ast.parse(text))
    path, name = mutant.test.split("::")
    tests = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
    assert name in [part.name for part in tests if isinstance(part, ast.FunctionDef)]


def test_names_are_unique():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize(
    ("wrong", "is_killed"),
    [
        ("failure: assert 1 == 2", True),
        ("failure: Failed: DID NOT RAISE ValueError", True),
        ("", False),
        ("error: failed on setup", False),
        ("skipped: no GPU", False),
        ("failure: NameError: name 'x' is not defined", False),
    ],
)
def test_only_a_failure_of_the_test_itself_kills(wrong, is_killed):
    mutant = MUTANTS[0]
    assert bool(killing(mutant, {mutant.test: "", f"{mutant.test}[2]": wrong})) == is_killed
    assert not killing(mutant, {f"{mutant.test}_of_another_name": "failure: assert False", mutant.test: ""})
