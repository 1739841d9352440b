"""A hundred prompts that are wrong, over HTTP: none ends in a raw error of Python (more: `tools/fuzz_prompts.py`)."""

from tools.fuzz_prompts import is_raw, run


def test_wrong_prompts_are_explained(server):
    outcomes, raw, examples = run(server, 100, seed=7)
    assert not raw, examples
    assert outcomes["failed"] + outcomes["refused"] > 30 and outcomes["stopped"] < 5


def test_raw_errors_would_be_seen():
    assert is_raw("GuidanceLab_XTILoader", "AttributeError", "'int' object has no attribute 'dims'")
    assert is_raw("GuidanceLab_XTILoader", "", "'<=' not supported between instances of 'float' and 'list'")
    assert not is_raw("GuidanceLab_XTILoader", "ValueError", "XTI Loader: 5 stands in 'file', where a text belongs.")
    assert not is_raw("KSampler", "AttributeError", "x")
