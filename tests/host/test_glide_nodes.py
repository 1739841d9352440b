"""GLIDE's nodes: what they give, what they refuse in one sentence, and that stock nodes work with them."""

import comfy.sd
import folder_paths
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from glide_host import encode, file_of, load, prompts, sample
from glide_tools import facts, relative, state_dict, tensors

from guidance_lab.glide import GlideModel, diffusion, tokenize
from guidance_lab.glide import load as load_library

GOLDEN, RUNS = tensors(), facts()["sampling"]
EMPTY = {"samples": torch.zeros(1, 3, 16, 16)}
NOISE = GOLDEN["traj.base.noise_T"]


@pytest.fixture
def base_file():
    """base.safetensors in models/diffusion_models."""
    from pathlib import Path

    folder = Path(folder_paths.get_folder_paths("diffusion_models")[0])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "base.safetensors").symlink_to(file_of("base"))
    yield "base.safetensors"
    (folder / "base.safetensors").unlink()


def test_the_loader_gives_the_hosts_own_objects(base_file, run_node):
    model, clip, vae = run_node("GuidanceLab_GLIDELoader", file=base_file, precision="fp32")
    assert isinstance(model, ModelPatcher) and isinstance(clip, comfy.sd.CLIP) and isinstance(vae, comfy.sd.VAE)
    picture = torch.rand(1, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    latent = vae.encode(picture)
    assert latent.shape == (1, 3, 16, 16) and torch.allclose(latent.movedim(1, -1), picture * 2 - 1, atol=1e-6)
    assert torch.allclose(vae.decode(latent), picture, atol=1e-6)
    assert not comfy.sd.load_diffusion_model_state_dict(dict(state_dict("base"))), "is ours still needed?"


def test_text_is_encoded_as_by_the_library():
    _, clip, _ = load("base")
    library = load_library(state_dict("base"))
    for prompt in facts()["prompts"]:
        ((context, extra),) = encode(clip, prompt)
        xf_proj, xf_out = library.text(*tokenize([prompt]))
        assert relative(context, xf_out) < 1e-5 and relative(extra["pooled_output"], xf_proj) < 1e-5


def test_a_long_prompt_is_cut_with_a_word(caplog):
    encode(load("base")[1], facts()["prompts"][2])
    assert "longer than the 128 tokens" in caplog.text


def test_weights_in_a_prompt_are_letters():
    _, clip, _ = load("base")
    plain, weighted = encode(clip, "a corgi")[0][0], encode(clip, "a (corgi:1.3)")[0][0]
    expected = load_library(state_dict("base")).text(*tokenize(["a (corgi:1.3)"]))[1]
    assert relative(weighted, expected) < 1e-5 and relative(weighted, plain) > 0.01


@pytest.mark.parametrize("precision, dtype, limit", [("fp16", torch.float16, 5e-3), ("bf16", torch.bfloat16, 3e-2)])
def test_lower_precisions(base_file, run_node, precision, dtype, limit):
    model, clip, _ = run_node("GuidanceLab_GLIDELoader", file=base_file, precision=precision)
    assert model.model_dtype() == dtype and model.model.diffusion_model.out[2].weight.dtype == torch.float32
    positive, negative = encode(clip, facts()["prompts"][0]), encode(clip, "")
    out, kept = sample(model, positive, negative, EMPTY, NOISE, "2", 1.0, "ddim")
    exact, expected = sample(load("base")[0], *prompts("base", RUNS["traj.base"]), EMPTY, NOISE, "2", 1.0, "ddim")
    # After the first, hugely amplified step the estimates are near the corners; the second tells.
    assert relative(out, exact) < 20 * limit and torch.isfinite(out).all()


def test_the_scheduler_picks_the_timesteps_of_the_original(run_node):
    model = load("base")[0]
    for spec in ("100", "27", "fast27", "5", "10,10,3,2,2", "ddim25"):
        (sigmas,) = run_node("GuidanceLab_GLIDEScheduler", model=model, steps=spec)
        schedule = diffusion.Schedule("squaredcos_cap_v2", spec)
        expected = [*(((1 - bar) / bar) ** 0.5 for bar in reversed(schedule.abar)), 0.0]
        assert sigmas.tolist() == pytest.approx(expected, rel=1e-6)
        ms = model.get_model_object("model_sampling")
        assert [int(ms.timestep(sigma)) for sigma in sigmas[:-1]] == schedule.timesteps[::-1]
    assert len(run_node("GuidanceLab_GLIDEScheduler", model=model, steps="10", denoise=0.3)[0]) == 4
    assert len(run_node("GuidanceLab_GLIDEScheduler", model=model, steps="10", denoise=0.0)[0]) == 0
    linear = run_node("GuidanceLab_GLIDEScheduler", model=load("upsample")[0], steps="100")[0]
    assert linear[0].item() == pytest.approx(157.41, abs=0.01)
    with pytest.raises(ValueError, match="not understood"):
        run_node("GuidanceLab_GLIDEScheduler", model=model, steps="many")


def test_the_upsampler_reads_the_picture_in_eight_bits(run_node):
    positive = encode(load("upsample")[1], "a")
    image = (GOLDEN["traj.upsample.low_res_raw"].movedim(1, -1) + 1) / 2
    conditioning, latent = run_node("GuidanceLab_GLIDEUpsample", conditioning=positive, image=image.repeat(2, 1, 1, 1))
    (low_res,) = [value for key, value in conditioning[0][1].items() if key.endswith("low_res")]
    assert torch.allclose(low_res[:1], GOLDEN["traj.upsample.low_res"], atol=1e-6) and len(low_res) == 2
    assert latent["samples"].shape == (2, 3, 256, 256) and not latent["samples"].any()
    assert "guidance_lab_glide_low_res" not in positive[0][1], "the given conditioning was changed"


def test_an_alpha_channel_is_left_out(run_node):
    positive = encode(load("upsample")[1], "a")
    conditioning, _ = run_node("GuidanceLab_GLIDEUpsample", conditioning=positive, image=torch.rand(1, 4, 4, 4))
    assert conditioning[0][1]["guidance_lab_glide_low_res"].shape[1] == 3


def inpainted(run_node, variant="base-inpaint", image=None, mask=None, size=16):
    positive, negative = prompts(variant, RUNS["traj.inpaint"])
    image = torch.rand(1, 16, 16, 3, generator=torch.Generator().manual_seed(1)) if image is None else image
    mask = torch.zeros(1, 16, 16) if mask is None else mask
    return run_node(
        "GuidanceLab_GLIDEInpaint",
        positive=positive,
        negative=negative,
        image=image,
        mask=mask,
        width=size,
        height=size,
    )


def test_the_known_part_of_an_inpainting_is_exact(run_node):
    mask = torch.zeros(1, 16, 16)
    mask[:, 4:12, 4:12] = 1
    image = torch.rand(1, 16, 16, 3, generator=torch.Generator().manual_seed(1))
    positive, negative, latent, used = inpainted(run_node, image=image, mask=mask)
    out, _ = sample(load("base-inpaint")[0], positive, negative, latent, NOISE, cfg=5.0)
    known = mask[:, None] == 0
    assert torch.equal(used, mask)
    assert torch.allclose(out * known, (image.movedim(-1, 1) * 2 - 1) * known, atol=1e-6)
    assert ((out - (image.movedim(-1, 1) * 2 - 1)) * ~known).abs().max() > 0.1


@pytest.mark.parametrize("sampler_name", ["euler", "ddim", "dpmpp_2m"])
def test_the_known_part_is_kept_by_stock_samplers_too(run_node, sample_stock, sampler_name):
    mask = torch.zeros(1, 16, 16)
    mask[:, 4:12, 4:12] = 1
    image = torch.rand(1, 16, 16, 3, generator=torch.Generator().manual_seed(1))
    positive, negative, latent, _ = inpainted(run_node, image=image, mask=mask)
    out = sample_stock(load("base-inpaint")[0], positive, negative, latent, sampler_name)
    known = mask[:, None] == 0
    assert torch.allclose(out * known, (image.movedim(-1, 1) * 2 - 1) * known, atol=1e-3)


@pytest.fixture
def sample_stock():
    """The KSampler node's own function."""
    import nodes as comfy_nodes

    def run(model, positive, negative, latent, sampler_name="ddim", steps=5, seed=0, cfg=3.0, scheduler="normal"):
        with torch.inference_mode():
            return comfy_nodes.common_ksampler(
                model, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent
            )[0]["samples"]  # fmt: skip

    return run


def test_masks_of_every_size(run_node):
    painted = torch.zeros(1, 64, 64)
    painted[0, 10, 33] = 1.0  # a single pixel
    *_, latent, used = inpainted(run_node, mask=painted)
    assert used.sum() == 1 and used[0, 2, 8] == 1, "a part of a pixel that is painted makes it new"
    *_, used = inpainted(run_node, mask=used, size=64)
    assert used.sum() == 16 and (used[0, 8:12, 32:36] == 1).all(), "enlarging repeats pixels"
    soft = torch.full((1, 16, 16), 0.4)
    soft[0, 0, 0] = 0.6
    *_, used = inpainted(run_node, mask=soft)
    assert used.sum() == 1
    two = torch.zeros(2, 16, 16)
    with pytest.raises(ValueError, match="2 masks for 1 pictures"):
        inpainted(run_node, mask=two)


def test_pictures_of_every_size(run_node):
    image = torch.rand(1, 40, 50, 3)
    positive, *_ = inpainted(run_node, image=image)
    assert positive[0][1]["guidance_lab_glide_image"].shape == (1, 3, 16, 16)


def test_the_hosts_noise_mask_is_left_out_with_a_word(run_node, caplog):
    mask = torch.zeros(1, 16, 16)
    mask[:, 4:12, 4:12] = 1
    positive, negative, latent, _ = inpainted(run_node, mask=mask)
    plain, _ = sample(load("base-inpaint")[0], positive, negative, latent, NOISE, cfg=5.0)
    masked, _ = sample(load("base-inpaint")[0], positive, negative, latent, NOISE, cfg=5.0, mask=mask)
    assert torch.equal(plain, masked) and "another way of inpainting" in caplog.text


def test_the_hosts_noise_mask_works_on_the_base_network():
    """Which has no inputs for a picture: outside the mask the result is the given latent."""
    positive, negative = prompts("base", RUNS["traj.base"])
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1
    given = {"samples": torch.full((1, 3, 16, 16), 0.25)}
    out, _ = sample(load("base")[0], positive, negative, given, NOISE, "20", 3.0, mask=mask)
    assert (
        torch.allclose(out[..., :8], given["samples"][..., :8], atol=1e-4) and (out[..., 8:] - 0.25).abs().max() > 0.1
    )


def test_text_of_another_network_is_refused():
    other = encode(load("upsample")[1], "a corgi")
    with pytest.raises(ValueError, match="another GLIDE network \\(upsample\\).*this base model"):
        sample(load("base")[0], other, other, EMPTY, NOISE)
    alien = [[torch.zeros(1, 128, 128), {"pooled_output": torch.zeros(1, 256)}]]
    with pytest.raises(ValueError, match="not GLIDE's"):
        sample(load("base")[0], alien, alien, EMPTY, NOISE)


def test_the_fingerprint_is_the_same_in_half_precision():
    from guidance_lab.glide.checkpoint import text_tensors
    from guidance_lab.glide.config import infer_config
    from guidance_lab.nodes.glide.network import fingerprint

    marks = {}
    for variant in ("base", "base-inpaint", "upsample", "upsample-inpaint"):
        tensors, config = text_tensors(state_dict(variant)), infer_config(state_dict(variant))
        marks[variant] = fingerprint(config, tensors)
        assert fingerprint(config, {key: value.half() for key, value in tensors.items()}) == marks[variant]
    assert len(set(marks.values())) == 4


def test_other_refusals():
    positive, negative = prompts("base", RUNS["traj.base"])
    with pytest.raises(ValueError, match="multiples of 4"):
        sample(load("base")[0], positive, negative, {"samples": torch.zeros(1, 3, 18, 16)}, torch.zeros(1, 3, 18, 16))
    text = encode(load("upsample")[1], "a")
    with pytest.raises(ValueError, match="needs a low-resolution picture.*GLIDE Upsample"):
        sample(load("upsample")[0], text, text, EMPTY, NOISE)
    image = [[text[0][0], {**text[0][1], "guidance_lab_glide_image": torch.zeros(1, 3, 8, 8),
                           "guidance_lab_glide_low_res": torch.zeros(1, 3, 4, 4)}]]  # fmt: skip
    with pytest.raises(ValueError, match="no input for a known picture"):
        sample(load("upsample")[0], image, image, EMPTY, NOISE)
    control = [[positive[0][0], {**positive[0][1], "reference_latents": [torch.zeros(1, 3, 16, 16)]}]]
    with pytest.raises(ValueError, match="reference pictures"):
        sample(load("base")[0], control, negative, EMPTY, NOISE)
    clip = load("base")[1].clone()
    clip.clip_layer(-2)
    with pytest.raises(ValueError, match="CLIP Set Last Layer"):
        encode(clip, "a")


def test_a_mask_made_for_another_size_is_refused(run_node):
    positive, negative, _, _ = inpainted(run_node)
    latent = {"samples": torch.zeros(1, 3, 32, 32)}
    with pytest.raises(ValueError, match="known picture is 3x16x16.*3x32x32"):
        sample(load("base-inpaint")[0], positive, negative, latent, torch.zeros(1, 3, 32, 32))


def test_the_sampler_refuses_other_models_and_rising_noise(tiny_model, cond, latent, run_node):
    (sampler,) = run_node("GuidanceLab_GLIDESampler", method={"method": "ancestral"})
    with pytest.raises(ValueError, match="only GLIDE's networks predict"):
        sample(
            tiny_model,
            cond(1),
            cond(2),
            latent(),
            torch.zeros(1, 4, 8, 8),
            sampler=sampler,
            sigmas=torch.tensor([2.0, 0]),
        )
    positive, negative = prompts("base", RUNS["traj.base"])
    with pytest.raises(ValueError, match="less noise at its end"):
        sample(load("base")[0], positive, negative, EMPTY, NOISE, sampler=sampler, sigmas=torch.tensor([2.0, 3.0, 0]))
    with pytest.raises(ValueError, match="does not know this method"):
        run_node("GuidanceLab_GLIDESampler", method={"method": "euler"})


def test_the_nodes_sampler_is_seeded_and_leaves_global_randomness_alone(run_node):
    positive, negative = prompts("base", RUNS["traj.base"])
    (sampler,) = run_node("GuidanceLab_GLIDESampler", method={"method": "ancestral"})
    state = torch.get_rng_state()
    runs = [
        sample(load("base")[0], positive, negative, EMPTY, NOISE, cfg=3.0, sampler=sampler, seed=seed)[0]
        for seed in (1, 1, 1, 2)
    ]
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2]) and not torch.equal(runs[0], runs[3])
    assert torch.equal(torch.get_rng_state(), state)
    (ddim,) = run_node("GuidanceLab_GLIDESampler", method={"method": "ddim", "eta": 0.0})
    pair = [sample(load("base")[0], positive, negative, EMPTY, NOISE, sampler=ddim, seed=seed)[0] for seed in (1, 2)]
    assert torch.equal(*pair)
    (noisy,) = run_node("GuidanceLab_GLIDESampler", method={"method": "ddim", "eta": 1.0})
    assert not torch.equal(sample(load("base")[0], positive, negative, EMPTY, NOISE, sampler=noisy)[0], pair[0])


def test_stock_ddim_is_close_to_the_original(run_node):
    """The host's own sampler on GLIDE's noise levels and with the clamp on the MODEL; the specification's figure is
    1.8e-4.
    """
    import comfy.samplers

    run = RUNS["traj.base_ddim"]
    positive, negative = prompts("base", run)
    stock = comfy.samplers.sampler_object("ddim")
    out, _ = sample(
        load("base")[0],
        positive,
        negative,
        EMPTY,
        GOLDEN["traj.base_ddim.noise_T"],
        run["spec"],
        run["cfg"],
        sampler=stock,
    )
    assert relative(out, GOLDEN["traj.base_ddim.samples"][-1:]) < 1e-3


def test_a_schedule_in_two_parts_is_the_schedule():
    positive, negative = prompts("base", RUNS["traj.base_ddim"])
    noise, model = GOLDEN["traj.base_ddim.noise_T"], load("base")[0]
    from guidance_lab.nodes.glide.scheduler import noise_levels

    sigmas = noise_levels(model, "6", 1.0)
    whole, _ = sample(model, positive, negative, EMPTY, noise, method="ddim", sigmas=sigmas)
    middle, _ = sample(model, positive, negative, EMPTY, noise, method="ddim", sigmas=sigmas[:4])
    rest, _ = sample(
        model, positive, negative, {"samples": middle}, torch.zeros_like(noise), method="ddim", sigmas=sigmas[3:]
    )
    assert relative(rest, whole) < 1e-4


def test_empty_latents_of_other_models_are_taken(sample_stock):
    """Empty Latent Image gives four channels at an eighth of the size; the host makes three of them and the full
    size.
    """
    positive, negative = prompts("base", RUNS["traj.base"])
    out = sample_stock(load("base")[0], positive, negative, {"samples": torch.zeros(1, 4, 16, 16)}, steps=2)
    assert out.shape[1] == 3 and torch.isfinite(out).all()


def test_a_batch_and_its_noise(run_node):
    positive, negative = prompts("base", RUNS["traj.base"])
    noise = torch.cat([NOISE, NOISE.flip(-1)])
    both, _ = sample(
        load("base")[0], positive, negative, {"samples": torch.zeros(2, 3, 16, 16)}, noise, method="ddim", cfg=3.0
    )
    ones = [sample(load("base")[0], positive, negative, EMPTY, row[None], method="ddim", cfg=3.0)[0] for row in noise]
    assert relative(both, torch.cat(ones)) < 1e-4


def test_a_lora_on_the_model_and_back():
    """Weights patched by ComfyUI's own mechanism change the result, and the next run is stock again."""
    positive, negative = prompts("base", RUNS["traj.base"])
    model = load("base")[0]
    before, _ = sample(model, positive, negative, EMPTY, NOISE, "2", method="ddim")
    patched = model.clone()
    key = "diffusion_model.input_blocks.0.0.weight"
    patched.add_patches({key: (torch.full((64, 3, 3, 3), 0.05),)}, 1.0)
    changed, _ = sample(patched, positive, negative, EMPTY, NOISE, "2", method="ddim")
    after, _ = sample(model, positive, negative, EMPTY, NOISE, "2", method="ddim")
    assert torch.equal(before, after) and relative(changed, before) > 1e-3


def test_the_library_and_the_host_predict_alike():
    model = load("base")[0]
    library: GlideModel = load_library(state_dict("base"))
    tokens, mask = tokenize([facts()["prompts"][0]])
    x = GOLDEN["base.fwd.x"][:1]
    sigma = torch.tensor([(1 / diffusion.Schedule("squaredcos_cap_v2").abar[250] - 1) ** 0.5])
    xf_proj, xf_out = library.text(tokens, mask)
    with torch.inference_mode():
        got = model.model.apply_model(x * (1 + sigma**2).sqrt(), sigma, c_crossattn=xf_out, y=xf_proj)
    expected = library(x, torch.tensor([250]), tokens, mask)[:, :3]
    assert relative(x * (1 + sigma**2).sqrt() - sigma * expected, got) < 1e-5


def test_other_models_are_as_before_after_a_run(tiny_model, cond, latent, sample_stock, run_node):
    before = sample_stock(tiny_model, cond(1), cond(2), latent(), "euler", 2)
    model = load("base")[0]
    functions = list(model.model_options["sampler_post_cfg_function"])
    positive, negative = prompts("base", RUNS["traj.base"])
    sample(model, positive, negative, EMPTY, NOISE, "2", 3.0)
    with pytest.raises(ValueError):
        sample(model, cond(1), cond(2), EMPTY, NOISE)
    assert torch.equal(before, sample_stock(tiny_model, cond(1), cond(2), latent(), "euler", 2))
    assert model.model_options["sampler_post_cfg_function"] == functions
    assert "guidance_lab_glide" not in model.model_options["transformer_options"]
