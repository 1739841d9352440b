"""The per-block nodes on the Shapes models: what they encode, what they leave alone, and what they refuse."""

import node_helpers
import nodes as comfy_nodes
import pytest
import tiny_cross_attention
import torch

from guidance_lab.nodes.layers.cross_attention import KEY
from guidance_lab.shapes import shipped

LINES = "middle: a green lizard\n0-3, 10-15: a blue star"


@pytest.fixture(scope="module")
def shapes():
    return shipped.load_model("main"), shipped.load_clip()


def encode(clip, text):
    return comfy_nodes.CLIPTextEncode().encode(clip, text)[0]


def carried(conditioning):
    return conditioning[0][1]["model_conds"][KEY].cond


@pytest.mark.parametrize(
    "layers",
    ["", "# nothing", "all: a red cube", "middle x0: a green lizard", "4-9: a red cube\nouter @0-0.5: a red cube"],
)
def test_one_prompt_is_the_stock_prompt_and_nothing_more(run_node, shapes, layers):
    model, clip = shapes
    out_model, out = run_node("GuidanceLab_PerBlockPrompt", model=model, clip=clip, text="a red cube", layers=layers)
    stock = encode(clip, "a red cube")
    assert out_model is model
    assert torch.equal(out[0][0], stock[0][0]) and out[0][1].keys() == stock[0][1].keys()
    assert torch.equal(out[0][1]["pooled_output"], stock[0][1]["pooled_output"])


def test_all_prompts_are_encoded_in_one_batch_exactly(run_node, shapes):
    """As sections of one batch, weights, embeddings and prompts of several sections included."""
    model, clip = shapes
    long = "a red cube left of a blue ball on white " * 4
    texts = ["a (green:1.3) lizard", long, "", "a star"]
    runs = []
    inner = clip.cond_stage_model.clip_l
    handle = inner.transformer.register_forward_pre_hook(lambda module, args, kwargs: runs.append(1), with_kwargs=True)
    try:
        layers = "\n".join(f"{i}: {text}" for i, text in enumerate(texts))
        _, out = run_node("GuidanceLab_PerBlockPrompt", model=model, clip=clip, text="a red cube", layers=layers)
    finally:
        handle.remove()
    assert len(runs) == 1
    for text, found in zip(texts, carried(out).texts, strict=True):
        assert torch.equal(found["cross_attn"], encode(clip, text)[0][0]), text
    assert torch.equal(out[0][0], encode(clip, "a red cube")[0][0])


def test_layers_read_their_lines_at_their_strength(run_node, shapes):
    model, clip = shapes
    layers = "middle: a green lizard\n0 x0.25: a blue star\n1 x0: a blue star"
    _, out = run_node("GuidanceLab_PerBlockPrompt", model=model, clip=clip, text="a red cube", layers=layers)
    prompts = carried(out)
    base, lizard, star = (encode(clip, text)[0][0] for text in ("a red cube", "a green lizard", "a blue star"))
    (stretch,) = prompts.stretches
    read = [base if choice is None else prompts.texts[choice]["cross_attn"] for choice in stretch.choice]
    assert all(torch.equal(read[i], lizard) for i in range(4, 10))
    assert torch.equal(read[0], torch.lerp(base, star, 0.25))
    assert all(torch.equal(read[i], base) for i in (1, 2, 3, *range(10, 16)))


@pytest.fixture
def draw(shapes, latent, sample):
    """Two CFG steps of 4 on the Shapes model, from sigma `steps` on."""
    model, clip = shapes

    def run(out_model, positive, **options):
        return sample(out_model, positive, encode(clip, ""), latent(seed=7), steps=4, **options)

    return run


def test_windows_make_a_layer_by_step_table(run_node, shapes, draw):
    """A line with a window acts in those steps alone: as a switch of the whole prompt in mid-run, by core's own
    timestep ranges.
    """
    model, clip = shapes
    layers = "all @0-0.5: a green lizard"
    windowed = draw(*run_node("GuidanceLab_PerBlockPrompt", model=model, clip=clip, text="a red cube", layers=layers))
    ranges = node_helpers.conditioning_set_values(
        encode(clip, "a green lizard"), {"start_percent": 0.0, "end_percent": 0.5}
    )
    ranges += node_helpers.conditioning_set_values(
        encode(clip, "a red cube"), {"start_percent": 0.5, "end_percent": 1.0}
    )
    assert torch.equal(windowed, draw(model, ranges))
    assert not torch.equal(windowed, draw(model, encode(clip, "a green lizard")))
    assert not torch.equal(windowed, draw(model, encode(clip, "a red cube")))


def test_controlnet_and_pooled_get_what_was_chosen(run_node, shapes):
    model, clip = shapes

    def options(**chosen):
        return run_node(
            "GuidanceLab_PerBlockPrompt", model=model, clip=clip, text="a red cube", layers=LINES, **chosen
        )[1][0][1]

    base, lizard = encode(clip, "a red cube")[0], encode(clip, "a green lizard")[0]
    assert "cross_attn_controlnet" not in options()
    # Its projection runs over all sections at once, which rounds differently.
    assert torch.allclose(options()["pooled_output"], base[1]["pooled_output"], atol=1e-5)
    assert not torch.allclose(base[1]["pooled_output"], lizard[1]["pooled_output"], atol=1e-1)
    chosen = options(controlnet="innermost layer", pooled="innermost layer")
    assert torch.equal(chosen["cross_attn_controlnet"], lizard[0])
    assert torch.equal(chosen["pooled_output"], lizard[1]["pooled_output"])


def test_conditionings_per_layer(run_node, shapes, draw):
    """The same as from text; areas and the like of the base stay; a socket is called by its letter."""
    model, clip = shapes
    from_text = draw(*run_node("GuidanceLab_PerBlockPrompt", model=model, clip=clip, text="a red cube", layers=LINES))
    sockets = {"A": encode(clip, "a green lizard"), "C": encode(clip, "a blue star")}
    lines = "middle: a\n0-3, 10-15: C"
    base = node_helpers.conditioning_set_values(encode(clip, "a red cube"), {"strength": 0.5})
    out = run_node("GuidanceLab_PerBlockConditioning", model=model, base=base, layers=lines, conditionings=sockets)
    assert torch.equal(draw(*out), from_text)
    assert out[1][0][1]["strength"] == 0.5 and "model_conds" not in base[0][1]
    plain = run_node(
        "GuidanceLab_PerBlockConditioning", model=model, base=sockets["A"], layers="middle: A", conditionings=sockets
    )
    assert plain[0] is model and plain[1][0] is sockets["A"][0]


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        (
            lambda a, b: comfy_nodes.ConditioningAverage().addWeighted(a, b, 0.5)[0],
            "changed after it got its layer prompts",
        ),
        (lambda a, b: comfy_nodes.ConditioningConcat().concat(a, b)[0], "changed after it got its layer prompts"),
        (lambda a, b: comfy_nodes.ConditioningZeroOut().zero_out(a)[0], "zero"),
        (lambda a, b: comfy_nodes.ConditioningSetArea().append(a, 64, 64, 0, 0, 1.0)[0], "kept"),
    ],
)
def test_stale_layer_prompts(run_node, shapes, draw, change, outcome):
    """Nodes that change the context alone are refused where they stand; a zeroed prompt is zero in every layer."""
    model, clip = shapes
    out_model, out = run_node("GuidanceLab_PerBlockPrompt", model=model, clip=clip, text="a red cube", layers=LINES)
    stock = encode(clip, "a red cube")
    if outcome not in ("zero", "kept"):
        with pytest.raises(ValueError, match=outcome):
            change(out, encode(clip, "a blue star"))
        return
    changed = change(out, None)
    if outcome == "zero":
        assert torch.equal(draw(out_model, changed), draw(model, change(stock, None)))
    else:
        assert not torch.equal(draw(out_model, changed), draw(model, change(stock, None)))


REFUSED = [
    ("16: a star", "Line 1: There is no layer 16: unet has layers 0-15"),
    ("middle a star", "Line 1: .* has no colon"),
    ("middle: a star\nMID: a cube", "Line 2: layer MID already has a prompt in line 1"),
    ("middle @0.5-0.2: a star", "must run forwards"),
]


@pytest.mark.parametrize(("layers", "sentence"), REFUSED)
def test_lines_that_cannot_be_meant(run_node, shapes, layers, sentence):
    model, clip = shapes
    with pytest.raises(ValueError, match=sentence):
        run_node("GuidanceLab_PerBlockPrompt", model=model, clip=clip, text="a red cube", layers=layers)


def test_conditionings_that_cannot_be_meant(run_node, shapes):
    model, clip = shapes
    a, b = encode(clip, "a green lizard"), encode(clip, "a red cube")
    layered = run_node("GuidanceLab_PerBlockPrompt", model=model, clip=clip, text="a red cube", layers=LINES)[1]

    def refused(sentence, base=b, layers="middle: A", **sockets):
        with pytest.raises(ValueError, match=sentence):
            run_node("GuidanceLab_PerBlockConditioning", model=model, base=base, layers=layers, conditionings=sockets)

    refused('Line 1 calls the conditioning "B", and connected are A', layers="middle: B", A=a)
    refused("has 2 parts", A=a + b)
    refused("has layer prompts already", base=layered, A=a)
    refused("64 channels wide", A=[[torch.zeros(1, 24, 64), {}]])


def test_strengths_of_masked_texts_are_refused(run_node):
    model, base = tiny_cross_attention.build("LTXV"), [tiny_cross_attention.prompt("LTXV", 1)]
    sockets = {"A": [tiny_cross_attention.prompt("LTXV", 2)]}
    with pytest.raises(ValueError, match="A strength of 0.5 is not possible for ltxv"):
        run_node("GuidanceLab_PerBlockConditioning", model=model, base=base, layers="0 x0.5: A", conditionings=sockets)
