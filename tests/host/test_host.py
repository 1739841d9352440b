"""The fixtures themselves, and what the pack says when ComfyUI is not as it expects."""

import sys

import comfy.model_base
import pytest
import torch
from run_async import run_async


def test_tiny_models_sample_and_differ(tiny_model, tiny_model_b, cond, latent, sample):
    assert isinstance(tiny_model.model, comfy.model_base.BaseModel)
    first = sample(tiny_model, cond(1), cond(2), latent(2))
    again = sample(tiny_model, cond(1), cond(2), latent(2))
    other = sample(tiny_model_b, cond(1), cond(2), latent(2))
    assert first.shape == (2, 4, 8, 8)
    assert torch.isfinite(first).all()
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_model_fixture_is_unpatched(tiny_model):
    assert not tiny_model.patches
    assert not tiny_model.model_options["transformer_options"]


def test_sd15_layout_has_sixteen_cross_attentions(sd15_model):
    names = [name for name, _ in sd15_model.model.named_modules() if name.endswith("attn2")]
    assert len(names) == 16


def test_coroutines_of_a_test_run_beside_another_loop():
    """As on a process that ran canvas tests before, where Playwright's loop still runs."""

    async def outer():
        return run_async(inner()), torch.is_inference_mode_enabled()

    async def inner():
        return torch.is_inference_mode_enabled()

    with torch.inference_mode():
        assert run_async(outer()) == (True, True)
    assert run_async(outer()) == (False, False)


def test_a_comfyui_that_is_too_old_is_told_so(guidance_lab, monkeypatch):
    monkeypatch.setattr("comfyui_version.__version__", "0.18.2")
    with pytest.raises(RuntimeError, match=r"needs ComfyUI 0\.27\.0 or newer, and this is 0\.18\.2: update ComfyUI\.$"):
        run_async(guidance_lab.comfy_entrypoint())


def test_what_one_family_misses_in_comfyui_costs_no_other_node(guidance_lab, pack_nodes, monkeypatch, caplog):
    """As after a renaming in ComfyUI: importing the family raises ImportError."""
    monkeypatch.setitem(sys.modules, "guidance_lab.nodes.galip", None)

    async def collect():
        return await (await guidance_lab.comfy_entrypoint()).get_node_list()

    left = {node.GET_SCHEMA().node_id for node in run_async(collect())}
    assert left == {name for name in pack_nodes if "GALIP" not in name}
    assert "no nodes of the family 'galip'" in caplog.text
