"""Guidance Compare draws bit for bit what KSampler draws, column by column, and says in one sentence what it cannot."""

import comfy.model_management
import comfy.samplers
import comfy.utils
import comfy_extras.nodes_custom_sampler as custom
import nodes as comfy_nodes
import pytest
import torch

SETTINGS = {"seed": 5, "steps": 4, "cfg": 2.0, "sampler_name": "dpmpp_2m", "scheduler": "karras"}
NODE = "GuidanceLab_GuidanceCompare"


@pytest.fixture
def world(shapes, run_node):
    """(model, guided, vae, positive, negative, a latent of two pictures)"""
    model, clip, vae, early = shapes[:4]
    guided = run_node("GuidanceLab_AutoguidanceModelPair", model=model, guide_model=early, weight=2.5)[0]
    with torch.inference_mode():
        positive, negative = (comfy_nodes.CLIPTextEncode().encode(clip, text)[0] for text in ("a red star", ""))
        latent = comfy_nodes.EmptyLatentImage().generate(64, 64, 2)[0]
    return model, guided, vae, positive, negative, latent


def stock(model, world, latent=None, **changes):
    settings = {**SETTINGS, "denoise": 1.0, **changes}
    with torch.inference_mode():
        drawn = comfy_nodes.KSampler().sample(
            model, settings["seed"], settings["steps"], settings["cfg"], settings["sampler_name"],
            settings["scheduler"], world[3], world[4], latent or world[5], settings["denoise"],
        )  # fmt: skip
        return comfy_nodes.VAEDecode().decode(world[2], drawn[0])[0]


def compare(run_node, world, models, **changes):
    _, _, vae, positive, negative, latent = world
    inputs = {**SETTINGS, "latent_image": latent, "vae": vae, "positive": positive, "negative": negative, **changes}
    return run_node(NODE, models=models, **inputs)


def test_each_column_is_what_ksampler_draws_bit_for_bit(run_node, world):
    model, guided = world[:2]
    images, sheet = compare(run_node, world, {"model1": model, "model2": guided, "model4": model})
    assert images.shape == (6, 64, 64, 3)
    plain = stock(model, world)
    assert torch.equal(images[:2], plain)
    assert torch.equal(images[2:4], stock(guided, world))
    assert torch.equal(images[4:], plain)  # nothing of a guidance stays behind in the model
    assert not torch.equal(images[:2], images[2:4])
    assert sheet.shape[0] == 1 and sheet.shape[1] > 2 * 256 and sheet.shape[2] > 3 * 256


@pytest.mark.parametrize("changes", [{"denoise": 0.5}, {"sampler_name": "dpm_2", "steps": 3}, {"cfg": 1.0}])
def test_settings_mean_what_they_mean_in_ksampler(changes, run_node, world):
    latent = {"samples": torch.randn(1, 4, 8, 8), "batch_index": [3], "noise_mask": torch.ones(1, 1, 64, 64)}
    latent["noise_mask"][..., 32:] = 0
    images, _ = compare(run_node, world, {"model1": world[0]}, latent_image=latent, **changes)
    assert torch.equal(images, stock(world[0], world, latent, **changes))


def test_a_guider_is_a_column_with_its_own_prompts_and_the_same_noise(run_node, world):
    model, _, vae, positive, negative, latent = world
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(SETTINGS["cfg"])
    own = comfy.samplers.CFGGuider(model)
    own.set_conds(negative, positive)
    own.set_cfg(3.0)
    images, _ = compare(run_node, world, {"model1": guider, "model2": own}, positive=None, negative=None)
    assert torch.equal(images[:2], stock(model, world))
    with torch.inference_mode():
        sigmas = comfy.samplers.KSampler(model, 4, model.load_device, "dpmpp_2m", "karras", 1.0).sigmas
        noise = custom.RandomNoise.execute(SETTINGS["seed"]).result[0]
        drawn = custom.SamplerCustomAdvanced.execute(
            noise, own, comfy.samplers.sampler_object("dpmpp_2m"), sigmas, latent
        ).result[0]
        wanted = comfy_nodes.VAEDecode().decode(vae, drawn)[0]
    assert torch.equal(images[2:], wanted)


def test_labels_fall_back_to_guidances_then_titles_then_numbers(run_node, world, guidance_lab):
    from guidance_lab.nodes.compare.columns import labels

    model, guided = world[:2]
    both = run_node("GuidanceLab_AutoguidanceModelPair", model=guided, guide_model=world[1], weight=3.0)[0]
    wired = {"model1": model, "model2": guided, "model3": both, "model4": model}
    prompt = {
        "9": {"inputs": {"models.model1": ["2", 0], "models.model4": ["31:4", 0]}, "class_type": NODE},
        "2": {"class_type": "CheckpointLoaderSimple", "inputs": {}, "_meta": {"title": "My model"}},
        "31:4": {"class_type": "PerturbedAttention", "inputs": {}},
    }
    assert labels("", wired, prompt, "9") == [
        "My model", "Autoguidance 2.5", "Autoguidance 2.5 + Autoguidance 3", "PerturbedAttention",
    ]  # fmt: skip
    assert labels("plain\n\n  both ", wired, prompt, "9") == ["plain", "Autoguidance 2.5", "both", "PerturbedAttention"]
    assert labels("", wired, None, None)[::3] == ["column 1", "column 4"]
    assert labels("same\nsame\nsame", wired, None, None)[:3] == ["same", "same (2)", "same (3)"]


def test_progress_counts_over_all_columns_and_an_interrupt_ends_it(run_node, world, monkeypatch):
    told = []
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, preview, node_id=None: told.append((value, total))
    )
    compare(run_node, world, {"model1": world[0], "model2": world[1]})
    # The host leaves steps out that follow one another too quickly.
    assert told == sorted(set(told)) and told[-1] == (8, 8) and {total for _, total in told} == {8}
    assert any(done < 4 for done, _ in told) and any(4 < done < 8 for done, _ in told)

    def stop(value, total, preview, node_id=None):
        if 4 < value < 8:  # in the second column
            comfy.model_management.interrupt_current_processing()

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", stop)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        compare(run_node, world, {"model1": world[0], "model2": world[1]})
    monkeypatch.undo()
    images, _ = compare(run_node, world, {"model1": world[0]})
    assert torch.equal(images, stock(world[0], world))


def test_what_cannot_be_compared_is_refused_in_one_sentence(run_node, world, latent):
    model = world[0]
    refused = [
        ({}, {}, "nothing to compare"),
        ({"model1": None}, {}, "nothing to compare"),
        ({"model1": model}, {"vae": None}, "empty VAE"),
        ({"model1": model}, {"positive": None}, "needs positive and negative for the MODEL at model1"),
        ({"model1": model}, {"negative": []}, "an empty list stands in 'negative'"),
        ({"model1": world[2]}, {}, "neither a MODEL nor a GUIDER"),
        ({"model1": model}, {"latent_image": {"samples": torch.zeros(1, 4, 5, 8, 8)}}, "single frames"),
        ({"model1": 3}, {}, "model1"),
    ]
    for models, changes, said in refused:
        with pytest.raises(ValueError, match=said) as caught:
            compare(run_node, world, models, **changes)
        assert "\n" not in str(caught.value) and str(caught.value).endswith("."), str(caught.value)


def test_a_model_of_another_family_is_refused(run_node, world, networks):
    with pytest.raises(ValueError, match="16 channels and the VAE takes 4"):
        compare(run_node, world, {"model1": world[0], "model2": networks("Flux")})
