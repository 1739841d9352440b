"""Weaker Version on a model that carries other nodes' attention patches: SAG, HyperTile, ToMe."""

import pytest
import tiny_networks
import torch
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_sag import SelfAttentionGuidance
from comfy_extras.nodes_tomesd import TomePatchModel
from pair_tools import pair
from weaker_tools import SIGMA, hooked, stages

OTHERS = {
    "SAG": lambda model: SelfAttentionGuidance.execute(model, 0.5, 2.0)[0],
    "HyperTile": lambda model: HyperTile.execute(model, 1, 1, 1, False)[0],
    "ToMe": lambda model: TomePatchModel.execute(model, 0.4)[0],
}


def predict(model):
    torch.manual_seed(0)  # ToMe draws from the global state
    x = 2 * torch.randn(1, 4, 32, 24, generator=torch.Generator().manual_seed(0))
    return tiny_networks.predict(model, x, SIGMA, tiny_networks.positive(1))


def as_guide(run_node, networks, guide):
    """What the pair takes for B: at cfg 1 and weight 0 the guide's own prediction, without its post-CFG functions."""
    return predict(pair(run_node, networks("SD15"), guide, 0.0))


def self_attentions(model, *blocks):
    return [block.attn1 for stage in stages(model, *blocks) for block in stage.transformer_blocks]


BLOCKS = {"SAG": ("middle", 0), "HyperTile": ("input", 1), "ToMe": ("input", 1)}


@pytest.mark.parametrize("other", OTHERS)
def test_identity_attention_is_the_values_whatever_else_is_at_the_block(networks, weaken, run_node, other):
    model, block = OTHERS[other](networks("SD15")), BLOCKS[other]
    weak_model = weaken(model, "identity_attention", blocks=f"{block[0]}:{block[1]}")
    assert torch.isfinite(predict(weak_model)).all()
    weak = as_guide(run_node, networks, weak_model)
    assert not torch.allclose(weak, as_guide(run_node, networks, model), atol=1e-3)

    # The same written down: at this block no attention, but the values of the tokens; elsewhere the other node acts.
    def of_values(module, args, output):
        return module.to_out(module.to_v(args[0]))

    plain = networks("SD15")
    if other == "SAG":  # which changes no prediction of a positive
        with hooked(self_attentions(plain, block), lambda attn: attn.register_forward_hook(of_values)):
            assert torch.allclose(weak, predict(plain), atol=2e-5)
        return
    patches = model.model_options["transformer_options"]["patches"]
    (before,), (behind,) = patches["attn1_patch"], patches["attn1_output_patch"]
    at_work = []

    def enter(q, k, v, extra):
        at_work.append(extra["block"] == block)
        return (q, k, v) if at_work[-1] else before(q, k, v, extra)

    def leave(out, extra):
        return out if extra["block"] == block else behind(out, extra)

    by_hand = plain.clone()
    by_hand.set_model_attn1_patch(enter)
    by_hand.set_model_attn1_output_patch(leave)
    with hooked(self_attentions(plain, block), lambda attn: attn.register_forward_hook(of_values)):
        assert torch.allclose(weak, predict(by_hand), atol=2e-5)
    assert True in at_work and False in at_work


@pytest.mark.parametrize("other", OTHERS)
def test_blurred_queries_at_the_block_of_another_node(networks, weaken, run_node, other):
    """Queries are blurred over the whole feature map, and the other node works on what comes out."""
    model, block = OTHERS[other](networks("SD15")), BLOCKS[other]
    weak_model = weaken(model, "blurred_queries", blocks=f"{block[0]}:{block[1]}", blur_sigma=9999.0)
    assert torch.isfinite(predict(weak_model)).all()
    weak = as_guide(run_node, networks, weak_model)
    by_hand = OTHERS[other](networks("SD15"))
    if other == "SAG":
        plain, found = networks("SD15"), []

        def mean_query(module, args, output):
            x = args[0]
            q = module.to_q(x).mean(1, keepdim=True).expand(-1, x.shape[1], -1)
            q, k, v = (
                t.unflatten(-1, (module.heads, module.dim_head)).transpose(1, 2)
                for t in (q, module.to_k(x), module.to_v(x))
            )
            weights = (q @ k.transpose(-1, -2) * module.dim_head**-0.5).softmax(-1)
            found.append(1)
            return module.to_out((weights @ v).transpose(1, 2).flatten(-2))

        with hooked(self_attentions(plain, block), lambda attn: attn.register_forward_hook(mean_query)):
            assert torch.allclose(weak, predict(plain), atol=2e-5) and found
        return
    before = by_hand.model_options["transformer_options"]["patches"]["attn1_patch"][0]

    def mean_first(q, k, v, extra):
        if extra["block"] == block:
            q = q.mean(1, keepdim=True).expand_as(q)
        return before(q, k, v, extra)

    by_hand.model_options["transformer_options"]["patches"]["attn1_patch"] = [mean_first]
    assert torch.allclose(weak, predict(by_hand), atol=2e-5)
    assert not torch.allclose(weak, as_guide(run_node, networks, model), atol=1e-3)
