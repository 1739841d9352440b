"""XTI Prompt on transformers with cross-attention and other text encoders than CLIP: learned tokens of UMT5 for Wan, of
T5 for LTX-Video, of Qwen2.5-VL with CLIP-L for Kandinsky 5.
"""

import comfy.text_encoders.kandinsky5
import comfy.text_encoders.lt
import comfy.text_encoders.wan
import pytest
import tiny_cross_attention as tiny
import tiny_encoders
import torch
from tiny_cross_attention import alike, predict, reference
from tiny_encoders import CALLS, CLIP, LLM, T5, by_hand, learned

from guidance_lab.nodes.layers.cross_attention import layer_table

encoders = comfy.text_encoders
TARGETS = {
    "Wan": (encoders.wan.te(), encoders.wan.WanT5Tokenizer, {"umt5xxl": {**T5, "vocab_size": 64}}),
    "LTXV": (encoders.lt.ltxv_te(), encoders.lt.LTXVT5Tokenizer, {"t5xxl": T5}),
    "Kandinsky5": (
        encoders.kandinsky5.te(), encoders.kandinsky5.Kandinsky5Tokenizer, {"qwen25_7b": LLM, "clip_l": CLIP}
    ),
}  # fmt: skip


@pytest.fixture
def text_encoder(monkeypatch):
    def get(name):
        parts = TARGETS[name][2]
        widths = {encoder: each.get("hidden_size") or each["d_model"] for encoder, each in parts.items()}
        monkeypatch.setitem(tiny_encoders.TARGETS, name, TARGETS[name])
        monkeypatch.setitem(tiny_encoders.WIDTHS, name, widths)
        return tiny_encoders.build(name, monkeypatch), widths

    return get


@pytest.mark.parametrize("name", TARGETS)
def test_each_block_reads_its_own_vectors(name, run_node, text_encoder):
    """Against texts put together by hand, each block given by a PyTorch hook what it gets under its own."""
    model, (clip, widths) = tiny.build(name), text_encoder(name)
    xti = learned(model, widths)
    reading, cond = run_node("GuidanceLab_XTIPrompt", model=model, clip=clip, text=CALLS, tokens="", xtis={"A": xti})[
        :2
    ]
    assert reading is not model
    with torch.inference_mode():
        texts = [by_hand(clip, widths, xti.layers[layer])[0] for layer in xti.table.names]
    base = texts[xti.table.inside_out()[0]]
    pooled = base[1].get("pooled_output")  # a text block of Kandinsky reads it, and it is that of the base
    texts = [[context, {**options, "pooled_output": pooled}] for context, options in texts]
    x = tiny.noisy(name, model)
    expected = reference(name, model, x, base, texts)
    assert alike(predict(reading, x, cond), expected)
    assert not alike(predict(model, x, [base]), expected)


@pytest.mark.parametrize("name", TARGETS)
def test_tokens_of_another_text_encoder_are_refused_in_one_sentence(name, run_node, text_encoder):
    model, (clip, widths) = tiny.build(name), text_encoder(name)
    for wrong in ({next(iter(widths)): 16}, {"clip_g": 24}):
        xtis = {"A": learned(model, wrong)}
        with pytest.raises(
            ValueError, match="^This XTI has tokens for the text encoder .*, and the CLIP has "
        ) as error:
            run_node("GuidanceLab_XTIPrompt", model=model, clip=clip, text="xti:A", tokens="", xtis=xtis)
        assert "\n" not in str(error.value)


def test_one_of_two_text_encoders(run_node, text_encoder):
    """Kandinsky's CLIP-L makes the pooled text alone; an XTI without vectors for it leaves the word out there."""
    model, (clip, _) = tiny.build("Kandinsky5"), text_encoder("Kandinsky5")
    xti = learned(model, {"qwen25_7b": 24})
    given = dict(model=model, clip=clip, text=CALLS, tokens="", xtis={"A": xti})
    _, cond = run_node("GuidanceLab_XTIPrompt", **given)[:2]
    rows = xti.layers[xti.table.names[layer_table(model).inside_out()[0]]]
    with torch.inference_mode():
        ((context, options),) = by_hand(clip, {"qwen25_7b": 24}, rows)
    assert torch.equal(cond[0][0], context) and torch.equal(cond[0][1]["pooled_output"], options["pooled_output"])
