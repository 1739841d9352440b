"""XTI Prompt where text and image share a stream: learned tokens of the text encoder's width in every block, for the
text encoders of Flux, Chroma, SD3, Qwen-Image, Mage-Flow, Lumina 2 and Z-Image.
"""

import comfy.text_encoders.anima
import comfy.text_encoders.sd3_clip
import pytest
import tiny_cross_attention
import tiny_encoders
import tiny_joint
import tiny_networks
import torch
from tiny_encoders import AFTER, BEFORE, CALLS, WITH_WORD, by_hand, learned, place_of_word

from guidance_lab.nodes.layers.cross_attention import layer_table
from guidance_lab.xti import XTI, load, save

SIGMA = 0.6
NAMES = tuple(tiny_encoders.TARGETS)
SD3_CLIPS = {name: width for name, width in tiny_encoders.WIDTHS["SD3"].items() if name != "t5xxl"}
# model, the text encoders that the XTI has tokens for
CASES = [
    *((name, tiny_encoders.WIDTHS[name]) for name in NAMES),
    ("Flux", {"t5xxl": 24}), ("SD3", {"t5xxl": 4096}), ("SD3", SD3_CLIPS), ("SD3", {"clip_g": 8}),
]  # fmt: skip


@pytest.fixture
def text_encoder(monkeypatch):
    return lambda name, **changed: tiny_encoders.build(name, monkeypatch, **changed)


def network(name: str):
    """A MODEL that takes the texts of `tiny_encoders`: SD3's are 4096 wide and its pooled text 16."""
    wide = {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 128}}
    changed = {"context_embedder_config": wide, "adm_in_channels": 16} if name == "SD3" else {}
    return tiny_joint.build(name, **changed)


def everywhere(model, encoders: dict[str, int], rows: torch.Tensor) -> XTI:
    table = layer_table(model)
    return XTI(table, dict.fromkeys(table.names, rows), "test", encoders)


@pytest.mark.parametrize(
    ("name", "encoders"), CASES, ids=lambda given: given if isinstance(given, str) else "+".join(given)
)
def test_each_block_reads_its_own_vectors(name, encoders, run_node, text_encoder):
    """Against texts put together by hand, and one batch row per block's text through the stock network."""
    model, clip = network(name), text_encoder(name)
    xti = learned(model, encoders)
    reading, cond = run_node("GuidanceLab_XTIPrompt", model=model, clip=clip, text=CALLS, tokens="", xtis={"A": xti})[
        :2
    ]
    with torch.inference_mode():
        texts = [by_hand(clip, encoders, xti.layers[layer])[0] for layer in xti.table.names]
        x = tiny_networks.noisy(model)
        base = texts[xti.table.inside_out()[0]]
        slow = tiny_joint.slow(name, model, [context for context, _ in texts], list(range(len(texts))))
        ours = tiny_networks.predict(reading, x, SIGMA, cond)
        expected = tiny_networks.predict(slow, x, SIGMA, [base])
        one = tiny_networks.predict(model, x, SIGMA, [base])
    assert float((ours - expected).abs().max() / expected.abs().max()) <= 1e-5
    assert float((one - expected).abs().max() / expected.abs().max()) > 1e-4


@pytest.mark.parametrize("text", [WITH_WORD, f"cat {AFTER}", f"{BEFORE} cat", f"{BEFORE} (cat:1.3) {AFTER}"])
@pytest.mark.parametrize("name", NAMES)
def test_the_vector_of_a_word_is_the_word(name, text, run_node, text_encoder):
    """In every place of the text, chat templates around it: bit for bit the plain prompt with the word."""
    model, clip, encoders = network(name), text_encoder(name), tiny_encoders.WIDTHS[name]
    parts = []
    with torch.inference_mode():
        for encoder in encoders:
            key = encoder.removeprefix("clip_")
            word = clip.tokenize(text)[key][0][place_of_word(clip, key, text)][0]
            parts.append(tiny_encoders.table_of(clip, encoder)[word].clone())
        (plain,) = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    xti = everywhere(model, encoders, torch.cat(parts)[None])
    given = dict(clip=clip, text=text.replace("cat", "xti:A"), tokens="", xtis={"A": xti})
    reading, cond = run_node("GuidanceLab_XTIPrompt", model=model, **given)[:2]
    assert reading is model and torch.equal(cond[0][0], plain[0])
    assert cond[0][1].keys() == plain[1].keys()
    assert all(value is plain[1][key] or torch.equal(value, plain[1][key]) for key, value in cond[0][1].items())


@pytest.mark.parametrize(
    ("name", "encoders"), CASES, ids=lambda given: given if isinstance(given, str) else "+".join(given)
)
def test_equal_rows_are_a_textual_inversion_and_files_keep_them(name, encoders, run_node, text_encoder, tmp_path):
    model, clip = network(name), text_encoder(name)
    xti = learned(model, encoders)
    save(xti, tmp_path / "mine.safetensors")
    kept = load(tmp_path / "mine.safetensors")
    assert kept.encoders == encoders and kept.table.names == xti.table.names
    assert all(torch.equal(kept.of_encoder(each)[layer], xti.of_encoder(each)[layer])
               for each in encoders for layer in xti.table.names)  # fmt: skip
    rows = next(iter(xti.layers.values()))
    given = dict(clip=clip, text=CALLS, tokens="", xtis={"A": everywhere(model, encoders, rows)})
    reading, cond = run_node("GuidanceLab_XTIPrompt", model=model, **given)[:2]
    with torch.inference_mode():
        ((context, options),) = by_hand(clip, encoders, rows)
    assert reading is model and torch.equal(cond[0][0], context)
    pooled = options["pooled_output"]
    assert cond[0][1]["pooled_output"] is pooled or torch.equal(cond[0][1]["pooled_output"], pooled)


def refused(run_node, model, clip, encoders):
    with pytest.raises(ValueError, match="This XTI has tokens for the text encoder .*, and the CLIP has ") as error:
        run_node(
            "GuidanceLab_XTIPrompt", model=model, clip=clip, text="xti:A", tokens="",
            xtis={"A": learned(model, encoders)},
        )  # fmt: skip
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_tokens_of_another_width_are_refused(name, run_node, text_encoder):
    model, clip = network(name), text_encoder(name)
    for encoder in tiny_encoders.WIDTHS[name]:
        refused(run_node, model, clip, {encoder: 16})
    refused(run_node, model, clip, {"clip_h": 24})


def test_an_sd3_without_its_t5_says_so(run_node, text_encoder):
    """ComfyUI's tokenizer of SD3 has all three; vectors for an encoder that is not there would do nothing."""
    model, clip = network("SD3"), text_encoder("SD3", clip=comfy.text_encoders.sd3_clip.sd3_clip(t5=False))
    said = refused(run_node, model, clip, {"t5xxl": 4096})
    assert said.partition("the CLIP has")[2].startswith(" clip_l (8) and clip_g (8):")
    given = dict(clip=clip, text=CALLS, tokens="", xtis={"A": learned(model, SD3_CLIPS)})
    assert run_node("GuidanceLab_XTIPrompt", model=model, **given)[0] is not model


def test_anima_is_refused_since_its_network_reads_numbers_of_t5s_tokens(run_node, text_encoder, monkeypatch):
    anima = comfy.text_encoders.anima
    own = {"qwen3_06b": tiny_encoders.LLM}
    monkeypatch.setitem(tiny_encoders.TARGETS, "Anima", (anima.te(), anima.AnimaTokenizer, own))
    monkeypatch.setitem(tiny_encoders.WIDTHS, "Anima", {"qwen3_06b": 24})
    model, clip = tiny_cross_attention.build("Anima"), text_encoder("Anima")
    refused(run_node, model, clip, {"t5xxl": 4096})
    given = dict(clip=clip, text=CALLS, tokens="", xtis={"A": learned(model, {"qwen3_06b": 24})})
    with pytest.raises(ValueError, match=r"^This XTI has tokens for qwen3_06b, not for t5xxl\.$"):
        run_node("GuidanceLab_XTIPrompt", model=model, **given)
