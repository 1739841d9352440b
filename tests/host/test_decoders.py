"""The decoders of the `decoder` widget: right numbers, right gradients, refusals in one sentence."""

import comfy.latent_formats
import folder_paths
import numpy as np
import pytest
import tiny_networks
import torch
from comfy.taesd.taesd import TAESD
from safetensors.torch import save_file
from tiny_vaes import kl_vae, taesd_vae

import tiny_checkpoint
from guidance_lab.guidance.crops import Box
from guidance_lab.nodes.host.decode import make_decoder
from guidance_lab.nodes.host.gradient import differentiable_weights


@pytest.fixture(scope="module")
def model():
    with torch.inference_mode():
        return tiny_networks.build("SD15")


@pytest.fixture
def approximate(tmp_path, monkeypatch):
    """models/vae_approx is this empty folder."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "vae_approx", ([str(tmp_path)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path


@pytest.mark.parametrize("make", [kl_vae, taesd_vae])
def test_a_vae_gives_what_vae_decode_gives(model, make):
    vae = make()
    decoder = make_decoder({"decoder": "vae", "vae": vae}, model)
    x = tiny_networks.noisy(model)
    with torch.inference_mode():
        expected = vae.decode(model.model.latent_format.process_out(x)).movedim(-1, 1)
        picture = decoder.decode(x)
    assert decoder.scale == 8 and picture.shape == expected.shape
    assert torch.equal(picture.clamp(0, 1), expected)
    assert decoder.models == (vae.patcher,)


def test_a_crop_is_decoded_alone(model):
    vae = kl_vae()
    decoder = make_decoder({"decoder": "vae_crop", "vae": vae}, model)
    x = tiny_networks.noisy(model, height=8, width=7)
    with torch.inference_mode():
        crop = decoder.decode(x, Box(3, 2, 4))
        assert torch.equal(crop, make_decoder({"decoder": "vae", "vae": vae}, model).decode(x[:, :, 3:7, 2:6]))
    assert decoder.crops and crop.shape == (2, 3, 32, 32)


def test_latent_rgb_is_the_previewers_picture():
    from latent_preview import Latent2RGBPreviewer

    for name in ("SD15", "SDXL", "Flux", "Flux2", "WAN21_T2V"):
        form = comfy.latent_formats.Wan21() if name == "WAN21_T2V" else getattr(comfy.latent_formats, name)()
        model = type(
            "Model", (), {"model": type("Base", (), {"latent_format": form})}
        )  # all that a decoder asks of a MODEL
        frame = (1,) if form.latent_dimensions == 3 else ()
        x = torch.rand(2, form.latent_channels, *frame, 4, 6, generator=torch.Generator().manual_seed(0)) * 0.2
        decoder = make_decoder({"decoder": "latent_rgb"}, model)
        picture = decoder.decode(x)
        assert picture.shape == (2, 3, 4 * decoder.scale, 6 * decoder.scale)
        previewer = Latent2RGBPreviewer(
            form.latent_rgb_factors, form.latent_rgb_factors_bias, form.latent_rgb_factors_reshape
        )
        shown = previewer.decode_latent_to_preview(x)
        shown = torch.tensor(np.asarray(shown)).movedim(-1, 0)
        assert ((picture[0].clamp(0, 1) * 255) - shown).abs().max() < 1.01


def test_taesd_is_found_by_the_latent_format(model, approximate):
    weights = {
        name.removeprefix("first_stage_model."): value for name, value in tiny_checkpoint.vae_weights(seed=2).items()
    }
    decoder_weights = {
        name.removeprefix("taesd_decoder."): value.float()
        for name, value in weights.items()
        if name.startswith("taesd_decoder")
    }
    save_file(decoder_weights, approximate / "taesd_decoder.safetensors")
    x = tiny_networks.noisy(model)
    previewer = TAESD(None, str(approximate / "taesd_decoder.safetensors"))
    expected = (previewer.decode(leaf := x.clone().requires_grad_()) + 1) / 2
    with torch.inference_mode():
        decoder = make_decoder({"decoder": "taesd"}, model)
        assert torch.equal(decoder.decode(x), expected)
        with differentiable_weights(decoder.models), torch.inference_mode(False):
            own = x.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(decoder.decode(own)[:, 0].sum(), own)
    assert torch.equal(gradient, torch.autograd.grad(expected[:, 0].sum(), leaf)[0])


def test_the_middle_frame_of_a_video():
    wan = tiny_networks.build("WAN21_T2V")
    x = torch.randn(1, 16, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    decoder = make_decoder({"decoder": "latent_rgb"}, wan)
    assert torch.equal(decoder.decode(x), decoder.decode(x[:, :, 2:3]))


def test_pixel_models_need_no_decoder():
    form = comfy.latent_formats.ChromaRadiance()
    pixel = type("Model", (), {"model": type("Base", (), {"latent_format": form})})
    x = torch.rand(1, 3, 8, 8) * 2 - 1
    assert torch.equal(
        make_decoder({"decoder": "vae_crop"}, pixel).decode(x, Box(1, 2, 4)), (x[:, :, 1:5, 2:6] + 1) / 2
    )


@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("way", ["vae", "vae_crop", "latent_rgb"])
def test_gradients_match_finite_differences(model, way, inference):
    """In the frame a node runs in: weights made in inference mode or outside, and everything called under inference
    mode.
    """
    with torch.inference_mode():
        decoder = make_decoder({"decoder": way, "vae": kl_vae(inference)}, model)
    box = Box(1, 0, 3) if way == "vae_crop" else None
    generator = torch.Generator().manual_seed(3)
    with torch.inference_mode():
        x, direction = torch.randn(2, 1, 4, 4, 4, generator=generator)
        weights = torch.randn(decoder.decode(x, box).shape, generator=generator)
        with differentiable_weights(decoder.models), torch.inference_mode(False):
            leaf = x.clone().requires_grad_()
            (gradient,) = torch.autograd.grad((decoder.decode(leaf, box) * weights.clone()).sum(), leaf)
        step = 1e-3
        ahead, behind = ((decoder.decode(x + s * direction, box).double() * weights).sum() for s in (step, -step))
        assert gradient.abs().max() > 0
        assert (gradient * direction).sum().item() == pytest.approx(((ahead - behind) / (2 * step)).item(), rel=1e-2)


def test_refusals(model, approximate):
    flux = tiny_networks.build("Flux")
    for choice, of, sentence in [
        ({"decoder": "vae", "vae": kl_vae()}, flux, "4 channels with 8 pixels.*16 channels"),
        ({"decoder": "vae"}, model, "needs a VAE"),
        ({"decoder": "taesd"}, model, "taesd_decoder.safetensors.*vae_approx"),
        ({"decoder": "taesd"}, tiny_networks.build("LTXV"), "no TAESD"),
        ({"decoder": "magic"}, model, "no decoder 'magic'"),
        (None, model, "choose one of"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            make_decoder(choice, of)


def test_latents_that_are_no_pictures():
    audio = type("Model", (), {"model": type("Base", (), {"latent_format": comfy.latent_formats.StableAudio1()})})
    with pytest.raises(ValueError, match="not pictures"):
        make_decoder({"decoder": "latent_rgb"}, audio)
