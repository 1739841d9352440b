"""Diffusion transformers: each block reads what it would read if the whole network had that prompt; other networks are
refused.
"""

import pytest
import tiny_cross_attention as tiny
import tiny_networks
import torch
from comfy.ldm.cosmos.predict2 import Attention
from comfy.ldm.wan.model import WanModel
from pair_tools import CallCounter
from tiny_cross_attention import READ, alike, predict, reference

from guidance_lab.nodes.layers.cross_attention import LayerPrompts, Stretch, carry, layer_table, read_layer_prompts
from guidance_lab.nodes.layers.encode_texts import text_of


def per_layer(model, base, entries):
    """The base prompt's CONDITIONING entry, on which layer i reads prompt i."""
    table = layer_table(model)
    stretch = Stretch(1.0, tuple(range(len(table))))
    return [carry(base, LayerPrompts(table, base[0], tuple(map(text_of, entries)), (stretch,)))]


@pytest.mark.parametrize("family", READ)
def test_each_block_reads_its_own_prompt(family):
    """Also beside a negative in one batched call, and with one prompt for all layers nothing changes at all."""
    model = tiny.build(family)
    x = tiny.noisy(family, model)
    base, negative = tiny.prompt(family, 1), tiny.prompt(family, 2)
    entries = [[context, {**options, "pooled_output": base[1]["pooled_output"]}] for context, options in map(
        lambda seed: tiny.prompt(family, seed), range(10, 10 + len(layer_table(model))))]  # fmt: skip
    counter = CallCounter(read_layer_prompts(model))
    own = predict(counter.model, x, per_layer(model, base, entries))
    expected, plain = reference(family, model, x, base, entries), predict(model, x, [base])
    assert alike(own, expected) and not alike(plain, expected)
    counter.rows.clear()
    guided = predict(counter.model, x, per_layer(model, base, entries), [negative], cfg=3.0)
    unguided = predict(model, x, [negative])
    assert counter.rows == [2]
    assert (guided - (unguided + 3.0 * (expected - unguided))).abs().max() <= 3e-5 * guided.abs().max()
    same = predict(read_layer_prompts(model), x, per_layer(model, base, [base] * len(entries)))
    assert alike(same, plain)
    assert torch.equal(predict(read_layer_prompts(model), x, [base]), plain)


REFUSED = ("PixArtAlpha", "AuraFlow", "HunyuanVideo")


@pytest.mark.parametrize("name", REFUSED)
def test_networks_without_layers_of_text_are_refused_with_the_reason(name):
    reason = "its text and image tokens form one stream|ComfyUI offers no place"
    with pytest.raises(ValueError, match=f"A prompt per layer is not possible for the architecture .*: ({reason})"):
        layer_table(tiny_networks.build(name))


@pytest.mark.parametrize("family", ["Cosmos", "Anima"])
def test_an_attention_that_calls_no_patches_is_refused(family, monkeypatch):
    """As ComfyUI 0.27.0 has it, where the patch would be left out in silence."""
    if family in READ:  # this ComfyUI is newer
        monkeypatch.setattr(Attention, "compute_qkv", lambda self, x, context=None, rope_emb=None: None)
    with pytest.raises(
        ValueError, match=r"Cosmos-Predict2 and Anima needs ComfyUI 0\.30\.0 or newer.*update ComfyUI\.$"
    ):
        layer_table(tiny.build(family))


def test_a_subclass_whose_blocks_take_more_is_refused():
    """A config of a known architecture does not say which class walks the blocks."""
    model = tiny.build("Wan")
    model.model.diffusion_model.__class__ = type("VaceLike", (WanModel,), {})
    with pytest.raises(ValueError, match="VaceLike"):
        layer_table(model)
    audio = tiny.build("StableAudio")
    audio.model.diffusion_model.transformer.layers[0].to_local_embed = torch.nn.Identity()
    with pytest.raises(ValueError, match="local conditioning"):
        layer_table(audio)
