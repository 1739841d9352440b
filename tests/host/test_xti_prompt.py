"""XTI Prompt on the Shapes models and on a checkpoint's CLIP-L: tokens per layer, as ComfyUI would put a file's."""

import nodes as comfy_nodes
import pytest
import torch
from safetensors.torch import save_file

from guidance_lab.nodes.layers.cross_attention import KEY, layer_table
from guidance_lab.shapes import shipped
from guidance_lab.xti import XTI
from guidance_lab.xti.layers import named_table


@pytest.fixture(scope="module")
def model():
    return shipped.load_model("main")


@pytest.fixture
def clip(tmp_path):
    return shipped.load_clip([str(tmp_path)])


def rows(seed, vectors=1, width=128):
    return 0.1 * torch.randn(vectors, width, generator=torch.Generator().manual_seed(seed))


def learned(model, seeds, vectors=1, name=None):
    """An XTI of the Shapes layers with the rows of one seed per layer."""
    table = layer_table(model)
    layers = {layer: rows(seed, vectors) for layer, seed in zip(table.names, seeds, strict=True)}
    return XTI(table, layers, "test", {"clip_l": 128}, metadata={"name": name} if name else {})


def run(run_node, model, clip, text, tokens="", **xtis):
    return run_node("GuidanceLab_XTIPrompt", model=model, clip=clip, text=text, tokens=tokens, xtis=xtis)


def encode(clip, text):
    return comfy_nodes.CLIPTextEncode().encode(clip, text)[0]


def contexts(model, out):
    """What each layer reads."""
    prompts = out[0][1]["model_conds"][KEY].cond
    (stretch,) = prompts.stretches
    return [out[0][0] if choice is None else prompts.texts[choice]["cross_attn"] for choice in stretch.choice]


PROMPTS = [
    ("a xti:A on white", "a embedding:{} on white"),
    ("a (red xti:A:1.3), xti:A, and xti:A.", "a (red embedding:{}:1.3), embedding:{}, and embedding:{} ."),
    ("(xti:a) (((xti:A)))", "(embedding:{}) (((embedding:{})))"),
    (
        "a red cube left of a blue ball on white " * 2 + "and xti:A " * 3,
        "a red cube left of a blue ball on white " * 2 + "and embedding:{} " * 3,
    ),
]


@pytest.mark.parametrize(("ours", "core"), PROMPTS)
@pytest.mark.parametrize("vectors", [1, 3, 9])
def test_each_layer_reads_its_own_token_as_core_would_put_it(run_node, model, clip, tmp_path, ours, core, vectors):
    """16 ordinary embedding files, one per layer: weights, repeated tokens, commas, several sections and vectors, all
    exactly.
    """
    xti = learned(model, range(16), vectors)
    _, out = run(run_node, model, clip, ours, A=xti)
    for i, (found, value) in enumerate(zip(contexts(model, out), xti.layers.values(), strict=True)):
        save_file({"clip_l": value}, tmp_path / f"layer{i}.safetensors")
        assert torch.equal(found, encode(clip, core.replace("{}", f"layer{i}"))[0][0]), i


def test_equal_rows_are_an_ordinary_textual_inversion_and_nothing_more(run_node, model, clip, tmp_path):
    save_file({"clip_l": rows(1)}, tmp_path / "ti.safetensors")
    out_model, out = run(run_node, model, clip, "a xti:A", A=learned(model, [1] * 16))
    assert out_model is model and "model_conds" not in out[0][1]
    assert torch.equal(out[0][0], encode(clip, "a embedding:ti")[0][0])


def test_without_a_token_it_is_the_stock_prompt(run_node, model, clip):
    out_model, out = run(run_node, model, clip, "a red cube", A=learned(model, range(16)))
    assert (
        out_model is model
        and torch.equal(out[0][0], encode(clip, "a red cube")[0][0])
        and "model_conds" not in out[0][1]
    )


def test_one_batched_encode_of_what_differs(run_node, model, clip):
    """As mkshing's files, which use 7 of 16 rows: 7 texts in one run of the text encoder."""
    seeds, texts = [0, 0, 1, 1, 2, 2, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6], []
    inner = clip.cond_stage_model.clip_l.transformer
    handle = inner.register_forward_pre_hook(
        lambda module, args, kwargs: texts.append(kwargs["embeds"].shape[0]), with_kwargs=True
    )
    out_model, out = run(run_node, model, clip, "a xti:A", A=learned(model, seeds))
    handle.remove()
    assert texts == [7] and out_model is not model
    read = contexts(model, out)
    assert read[6] is out[0][0]  # the innermost layer's text is what a ControlNet and the pooled vector get
    assert [[torch.equal(a, b) for b in read] for a in read] == [[a == b for b in seeds] for a in seeds]


def test_names_and_given_tokens(run_node, model, clip):
    """A file's name, the socket's letter and a given word are the same token; several XTIs in one prompt."""
    cat, style = learned(model, range(16), name="My cat"), learned(model, range(20, 36), 2)
    by_letter = run(run_node, model, clip, "a xti:A in the style of xti:B", A=cat, B=style)[1]
    for text, tokens in (("a xti:my_cat in the style of xti:b", ""), ("a <cat> in the style of *s", "<cat>, *s")):
        other = run(run_node, model, clip, text, tokens, A=cat, B=style)[1]
        assert all(torch.equal(a, b) for a, b in zip(contexts(model, by_letter), contexts(model, other), strict=True))
    one = run(run_node, model, clip, "a xti:A", A=cat)[1]
    assert not torch.equal(contexts(model, one)[0], contexts(model, by_letter)[0])


@pytest.mark.parametrize("word", ["lab", "guidance", "xti", "A", "embedding"])
def test_a_token_never_matches_inside_what_another_became(run_node, model, clip, word):
    """Words that occur in the pack's own marker, and words of which one is the beginning of another."""
    cat, style = learned(model, range(16)), learned(model, range(20, 36), 2)
    expected = run(run_node, model, clip, "a xti:A like xti:B", A=cat, B=style)[1]
    for tokens in (f"<cat>, {word}", f"{word}-2, {word}"):
        first = tokens.split(",")[0]
        other = run(run_node, model, clip, f"a {first} like {word}", tokens, A=cat, B=style)[1]
        assert all(torch.equal(a, b) for a, b in zip(contexts(model, expected), contexts(model, other), strict=True))


def test_the_files_own_token_is_tried_when_nothing_is_called(run_node, model, clip):
    plain = learned(model, range(16))
    named = XTI(plain.table, plain.layers, "mkshing", plain.encoders, ("<cat>",))
    expected = run(run_node, model, clip, "a xti:A", A=plain)[1]
    own = run(run_node, model, clip, "a <cat>", A=named)[1]
    assert all(torch.equal(a, b) for a, b in zip(contexts(model, expected), contexts(model, own), strict=True))
    called = run(run_node, model, clip, "a xti:A like <cat>", A=plain, B=named)[1]
    without = run(run_node, model, clip, "a xti:A like <cat>", A=plain)[1]
    assert torch.equal(called[0][0], without[0][0])


def test_it_says_when_nothing_is_called(run_node, model, clip, caplog):
    run(run_node, model, clip, "a red cube", A=learned(model, range(16)))
    assert "calls none of the connected XTIs (xti:A)" in caplog.text
    caplog.clear()
    run(run_node, model, clip, "a xti:A", A=learned(model, range(16)))
    assert not caplog.text


def test_tokens_inside_the_lines_of_a_per_block_prompt(run_node, model, clip):
    """P+ and XTI together: each layer reads its own vectors of the token in its own line, or in the base prompt."""
    cat, style = learned(model, range(16), name="cat"), learned(model, [5] * 16, 2)
    options = {"model": model, "clip": clip, "text": "a xti:cat", "xtis": {"A": cat, "B": style}}
    lines = "down: a photo of xti:A\nMID: a xti:A in the style of xti:B\nOUT03 x0.5: a red cube"
    out = run_node("GuidanceLab_PerBlockPrompt", layers=lines, **options)[1]
    text = {
        "base": run(run_node, model, clip, "a xti:A", A=cat)[1],
        "down": run(run_node, model, clip, "a photo of xti:A", A=cat)[1],
        "MID": run(run_node, model, clip, "a xti:A in the style of xti:B", A=cat, B=style)[1],
    }
    expected = {name: contexts(model, value) for name, value in text.items()}
    table = layer_table(model)
    for layer, found in zip(table.layers, contexts(model, out), strict=True):
        own = expected["down" if layer.direction == "down" else "MID" if layer.name == "MID" else "base"][layer.index]
        if layer.name == "OUT03":
            own = torch.lerp(own, encode(clip, "a red cube")[0][0], 0.5)
        assert torch.equal(found, own), layer.name
    assert torch.equal(out[0][0], text["base"][0][0])
    alone = run_node("GuidanceLab_PerBlockPrompt", layers="", **options)[1]
    assert all(torch.equal(a, b) for a, b in zip(contexts(model, alone), expected["base"], strict=True))
    with pytest.raises(ValueError, match='The text calls "xti:dog"'):
        run_node("GuidanceLab_PerBlockPrompt", layers="MID: xti:dog", **options)


def test_what_cannot_be_meant_is_refused(run_node, model, clip):
    cat = learned(model, range(16))
    with pytest.raises(ValueError, match='The text calls "xti:dog", and the connected XTIs are xti:a'):
        run(run_node, model, clip, "a xti:dog", A=cat)
    with pytest.raises(ValueError, match="2 tokens for 1 XTIs"):
        run(run_node, model, clip, "a <x>", "<x>, <y>", A=cat)
    table = named_table("sd1")
    wide = XTI(table, {name: torch.ones(1, 768) for name in table.names}, "kohya", {"clip_l": 768})
    with pytest.raises(ValueError, match=r"for the text encoder clip_l \(768\), and the CLIP has clip_l \(128\)"):
        run(run_node, model, clip, "a xti:A", A=wide)
    other = named_table("sdxl")
    small = XTI(other, {name: rows(i) for i, name in enumerate(other.names)}, "own", {"clip_l": 128})
    with pytest.raises(ValueError, match="learned for sdxl"):
        run(run_node, model, clip, "a xti:A", A=small)


def test_the_pictures_differ_from_any_single_row(run_node, model, clip, latent, sample):
    out_model, out = run(run_node, model, clip, "a xti:A", A=learned(model, range(16)))
    ours = sample(out_model, out, encode(clip, ""), latent(seed=7), steps=2)
    for seed in (0, 6, 15):
        single = run(run_node, model, clip, "a xti:A", A=learned(model, [seed] * 16))
        assert not torch.equal(ours, sample(*single, encode(clip, ""), latent(seed=7), steps=2))
