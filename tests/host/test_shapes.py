"""The shipped Shapes models in the real host: they are ComfyUI's own objects, and the guides are weaker versions.

How good they are is measured by `python dev.py evidence shapes`.
"""

import comfy.latent_formats
import comfy.ldm.modules.attention
import comfy.ldm.modules.diffusionmodules.openaimodel
import comfy.model_management
import comfy.model_sampling
import comfy.sd
import numpy as np
import pytest
import torch

from guidance_lab.experiments.data import scene
from guidance_lab.experiments.sampling import encode
from guidance_lab.shapes import shipped, words
from guidance_lab.shapes.models import GROUPS, word_tokenizer
from guidance_lab.shapes.render import render
from guidance_lab.shapes.world import random_scene


@pytest.fixture
def models(run_node):
    with torch.inference_mode():  # as in a prompt, for the whole test
        yield run_node("GuidanceLab_ShapesDemoModels")


def test_outputs_are_the_hosts_own_objects(models):
    model, clip, vae, early, small = models[:5]
    for patcher in (model, early, small):
        assert type(patcher.model.diffusion_model) is comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel
        assert isinstance(patcher.model.latent_format, comfy.latent_formats.SD15)
        assert isinstance(patcher.model.model_sampling, comfy.model_sampling.EPS)
    assert isinstance(clip, comfy.sd.CLIP) and isinstance(vae, comfy.sd.VAE)
    layers = [
        m
        for m in model.model.diffusion_model.modules()
        if isinstance(m, comfy.ldm.modules.attention.BasicTransformerBlock)
    ]
    assert len(layers) == 16
    assert small.model_size() < model.model_size()
    assert early.model_size() == model.model_size()
    assert len({id(patcher.model) for patcher in (model, early, small)}) == 3


def test_everything_shipped_is_under_40_megabytes_and_galip_under_10_and_glide_under_8_of_their_own():
    sizes = {path.stem: path.stat().st_size for path in shipped.WEIGHTS.rglob("*.safetensors")}
    assert sizes.pop("galip") < 10e6
    assert sum(sizes.pop(name) for name in set(shipped.GLIDE.values())) < 8e6
    assert sum(sizes.values()) < 40e6


def test_weights_that_are_missing_are_named(monkeypatch, tmp_path, run_node):
    monkeypatch.setattr(shipped, "WEIGHTS", tmp_path)
    with pytest.raises(FileNotFoundError, match="main.safetensors"):
        shipped.load_model("main")
    with pytest.raises(ValueError, match="there is main, early, small"):
        shipped.load_model("large")


def test_the_prompt_works_as_in_comfyui(models):
    clip = models[1]
    plain = clip.encode_from_tokens(clip.tokenize("a red cube on white"))
    assert plain.shape == (1, 24, 128)
    assert not torch.equal(plain, clip.encode_from_tokens(clip.tokenize("a (red:1.5) cube on white")))
    long = clip.encode_from_tokens(clip.tokenize(" ".join(["a red cube"] * 12)))
    assert long.shape == (1, 48, 128)


def test_the_prompt_has_the_ids_of_the_vocabulary(models):
    """ComfyUI's tokenizer, transformers' and `words.tokens`, which trained the models, agree."""
    clip, rng = models[1], np.random.default_rng(3)
    captions = [random_scene(rng).caption for _ in range(50)]
    for caption in [*captions, "A Red, striped ball. on unicorn", ""]:
        ids = words.tokens([caption])[0].tolist()
        assert [token for token, _ in clip.tokenize(caption)["l"][0]] == ids, caption
        said = word_tokenizer()(caption)["input_ids"]
        assert said == ids[: len(said)], caption
    assert word_tokenizer().get_vocab() == words.vocabulary()


def test_every_normalization_has_channels_to_compare(models):
    """Also in a model that ComfyUI makes again."""
    model, vae = models[0], models[2]
    again = model.cached_patcher_init[0](*model.cached_patcher_init[1])
    for module in (*(m.model.diffusion_model for m in (model, again, *models[3:5])), vae.first_stage_model):
        groups = [part for part in module.modules() if isinstance(part, torch.nn.GroupNorm)]
        assert groups and all(part.num_groups == GROUPS for part in groups)


def test_the_vae_has_the_latent_scale_of_sd15(models):
    """Exported latents are mean 0, deviation 1 after SD1.5's latent format, and decoding undoes encoding."""
    vae = models[2]
    pixels = torch.from_numpy(np.stack([render(scene(i)) for i in range(200)])).float() / 255  # of the training set
    latents = vae.encode(pixels)
    scaled = models[0].model.process_latent_in(latents)
    assert scaled.mean((0, 2, 3)).abs().max() < 0.15
    assert (scaled.std((0, 2, 3)) - 1).abs().max() < 0.1
    assert (vae.decode(latents) - pixels).abs().mean() < 0.04  # 0.2 and more when the scale is folded in wrongly


def test_the_early_guide_is_a_weaker_version(models):
    """Autoguidance needs a guide that is wrong in the same way but more: further from the pictures, at every noise
    level.
    """
    model, clip, vae, early, small = models[:5]
    rng = np.random.default_rng(12)
    scenes = [random_scene(rng) for _ in range(64)]
    context = encode(clip, [drawn.caption for drawn in scenes])
    z = vae.encode(torch.from_numpy(np.stack([render(drawn) for drawn in scenes])).float() / 255)
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))

    def error(patcher, sigma: float) -> float:
        comfy.model_management.load_models_gpu([patcher])
        x0 = patcher.model.process_latent_in(z)
        denoised = patcher.model.apply_model(x0 + sigma * noise, torch.full((len(z),), sigma), c_crossattn=context)
        return (denoised - x0).square().mean().item()

    for sigma in (0.3, 1.0, 4.0):
        main = error(model, sigma)
        assert main < error(early, sigma)
        assert main < error(small, sigma)


def test_the_linear_preview_is_nearer_to_the_picture_than_sd15s(models):
    main, _, vae = models[:3]
    rng = np.random.default_rng(5)
    x = torch.from_numpy(np.stack([render(random_scene(rng)) for _ in range(8)])).float() / 255
    latent = main.model.latent_format.process_in(vae.encode(x)).permute(0, 2, 3, 1)
    small = torch.nn.functional.avg_pool2d(x.permute(0, 3, 1, 2), 8).permute(0, 2, 3, 1) * 2 - 1

    def error(form):
        bias = torch.tensor(form.latent_rgb_factors_bias or [0.0, 0.0, 0.0])
        return (latent @ torch.tensor(form.latent_rgb_factors) + bias - small).square().mean()

    assert error(main.model.latent_format) < 0.7 * error(comfy.latent_formats.SD15())


def test_the_scorer_and_the_prompt_share_one_text_tower(models):
    """Two implementations of the same text encoder: open_clip's, and ComfyUI's behind CLIPTextEncode."""
    clip, scorer = models[1], models[5]
    captions = ["a red cube on white", "a blue striped ball left of a green star and above a purple house on black"]
    pooled = torch.cat([clip.encode_from_tokens(clip.tokenize(caption), return_pooled=True)[1] for caption in captions])
    assert torch.allclose(scorer.embed_lines(captions), pooled, atol=1e-4)


def test_the_scorer_knows_the_right_caption(models):
    scorer = models[5]
    rng = np.random.default_rng(11)
    scenes = [random_scene(rng) for _ in range(24)]
    x = torch.stack([torch.tensor(render(drawn)).permute(2, 0, 1).float() / 255 for drawn in scenes])
    comfy.model_management.load_models_gpu(list(scorer.models))
    with torch.inference_mode(False), torch.no_grad():
        images = torch.nn.functional.normalize(scorer.embed_pictures(x.clone()), dim=-1)
    texts = torch.nn.functional.normalize(scorer.embed_lines([drawn.caption for drawn in scenes]), dim=-1)
    assert ((images @ texts.T).argmax(1) == torch.arange(24)).float().mean() >= 0.9
