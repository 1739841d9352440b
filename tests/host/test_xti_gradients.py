"""The networks while a token is learned: gradients of every layer, the loss that is minimized, and that sampling sees
the same.
"""

import comfy.model_sampling
import pytest
import tiny_networks
import torch
import xti_tools as tools
from comfy.ldm.modules.attention import SpatialTransformer
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
from xti_tools import opened, outside_inference

from guidance_lab.nodes.layers.token_training import trainable_table
from guidance_lab.xti import XTI
from guidance_lab.xti.losses import reconstruction_loss, velocity_scale

SHAPE = (3, 4, 8, 8)


@pytest.fixture
def sd1():
    return tools.sixteen_layers(), tools.sd1_clip()


@pytest.fixture
def sdxl():
    return tools.sdxl(), tools.sdxl_clip()


def random_rows(layers: int, vectors: int = 1, width: int = 24, seed: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(vectors, width, generator=generator).requires_grad_() for _ in range(layers)]


def pictures(seed: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Clean latents, noise, and numbers of noise levels from low to high."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(SHAPE, generator=generator),
        torch.randn(SHAPE, generator=generator),
        torch.tensor([50, 500, 950]),
    )


def loss_of(network, rows):
    clean, noise, levels = pictures()
    contexts = network.encode(0, rows)
    prediction, scale = network.predict(clean, noise, levels, contexts)
    return reconstruction_loss(prediction, clean, scale)


def test_every_row_gets_a_gradient(sd1):
    with outside_inference(), opened(*sd1) as network:
        rows = random_rows(16)
        loss_of(network, rows).backward()
    assert all(row.grad.abs().max() > 1e-6 for row in rows)


def test_a_context_depends_on_its_own_row_alone(sd1):
    with outside_inference(), opened(*sd1) as network:
        rows = random_rows(16)
        contexts = network.encode(0, rows)
        for layer in (0, 3, 6, 15):
            gradients = torch.autograd.grad(contexts[layer].sum(), rows, retain_graph=True, allow_unused=True)
            reached = [i for i, gradient in enumerate(gradients) if gradient is not None and gradient.abs().max() > 0]
            assert reached == [layer]


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_row_is_learned_by_its_own_layer(family, request):
    """With the values of one attention switched off, exactly the row of that layer has no gradient."""
    model, clip = request.getfixturevalue(family)
    with outside_inference(), opened(model, clip) as network:
        count = len(transformers(model))
        for layer in (0, 2, count // 2, count - 1):
            modules = [block.attn2 for block in transformers(model)[layer].transformer_blocks]
            saved = [module.to_v.weight.clone() for module in modules]
            for module in modules:
                module.to_v.weight.zero_()
            rows = random_rows(count)
            loss_of(network, rows).backward()
            assert [i for i, row in enumerate(rows) if row.grad is None or row.grad.abs().max() == 0] == [layer]
            for module, weight in zip(modules, saved, strict=True):
                module.to_v.weight.copy_(weight)


def transformers(model) -> list:
    """The spatial transformers in the order of computation."""
    network = model.model.diffusion_model
    stages = [*network.input_blocks, network.middle_block, *network.output_blocks]
    return [module for stage in stages for module in stage.modules() if isinstance(module, SpatialTransformer)]


def test_the_gradient_is_that_of_finite_differences(sd1):
    """ComfyUI's CLIP layers add in place to what autograd has saved; the gradient has to be right all the same."""
    with outside_inference(), opened(*sd1) as network:
        rows = random_rows(16)
        loss_of(network, rows).backward()
        for layer in (1, 8, 14):
            direction = rows[layer].grad / rows[layer].grad.norm()
            with torch.no_grad():
                sides = []
                for sign in (1, -1):
                    moved = [row + sign * 3e-2 * direction if i == layer else row for i, row in enumerate(rows)]
                    sides.append(loss_of(network, moved).item())
            assert (sides[0] - sides[1]) / 6e-2 == pytest.approx(rows[layer].grad.norm().item(), rel=2e-2)


def output_of(model, evaluate):
    """(what `evaluate` returns, what the diffusion network itself put out)."""
    seen = []
    handle = model.model.diffusion_model.register_forward_hook(lambda module, given, out: seen.append(out))
    try:
        return evaluate(), seen[-1]
    finally:
        handle.remove()


def test_the_loss_of_an_eps_model_is_the_error_of_the_noise(sd1):
    with outside_inference(), opened(*sd1) as network, torch.no_grad():
        loss, eps = output_of(sd1[0], lambda: loss_of(network, random_rows(16)))
        assert loss.item() == pytest.approx((eps - pictures()[1]).square().mean().item(), rel=1e-4)


@pytest.mark.parametrize("zsnr", [False, True])
def test_the_loss_of_a_v_model_is_the_error_of_v(sd1, zsnr):
    """v = alpha eps - sigma x0 in the variance-preserving frame (Salimans & Ho 2022)."""
    model = ModelSamplingDiscrete().patch(sd1[0], "v_prediction", zsnr)[0]
    clean, noise, levels = pictures()
    with outside_inference(), opened(model, sd1[1]) as network, torch.no_grad():
        assert isinstance(model.model.model_sampling, comfy.model_sampling.V_PREDICTION)
        loss, v = output_of(model, lambda: loss_of(network, random_rows(16)))
        sigma = network.sigmas[levels][:, None, None, None]
        expected = (noise - sigma * clean) / (sigma**2 + 1).sqrt()
        assert loss.item() == pytest.approx((v - expected).square().mean().item(), rel=1e-3)
        assert torch.equal(
            network.predict(clean, noise, levels, network.encode(0, random_rows(16)))[1],
            velocity_scale(sigma.flatten()),
        )


@pytest.mark.parametrize(("family", "vectors"), [("sd1", 1), ("sd1", 3), ("sdxl", 1), ("sdxl", 2)])
def test_training_sees_what_sampling_sees(family, vectors, request, run_node):
    """The prediction that is trained is the one of XTI Prompt in a real sampling run, pooled text included."""
    model, clip = request.getfixturevalue(family)
    with outside_inference(), opened(model, clip, vectors=vectors) as network, torch.no_grad():
        rows = random_rows(len(transformers(model)), vectors)
        x, sigma = tiny_networks.noisy(model, height=8, width=8), network.sigmas[400:401]
        trained = network.denoise(x, sigma.expand(len(x)), network.encode(0, rows))
    table = trainable_table(model)
    widths = {"clip_l": 24} if family == "sd1" else {"clip_l": 8, "clip_g": 16}
    xti = XTI(table, dict(zip(table.names, rows, strict=True)), "test", widths)
    patched, conditioning = run_node(
        "GuidanceLab_XTIPrompt", model=model, clip=clip, text="a photo of a xti:A on a table", xtis={"A": xti}
    )
    sampled = tiny_networks.predict(patched, x, float(sigma), conditioning)
    assert torch.allclose(trained, sampled, atol=2e-5 * float(sampled.abs().max()))
    plain = clip.encode_from_tokens_scheduled(clip.tokenize("a photo of a cat on a table"))
    assert (tiny_networks.predict(model, x, float(sigma), plain) - sampled).abs().max() > 1e-3 * sampled.abs().max()


def test_one_row_for_all_layers_is_the_plain_prompt(sd1):
    """A shared token goes through the network as ComfyUI's own context, without any patch."""
    model, clip = sd1
    row = random_rows(1)[0]
    with outside_inference(), opened(model, clip) as network, torch.no_grad():
        x, sigma = tiny_networks.noisy(model, height=8, width=8), network.sigmas[400:401]
        context = network.encode(0, [row])
        shared = network.denoise(x, sigma.expand(len(x)), context)
        apart = network.denoise(x, sigma.expand(len(x)), context.expand(16, -1, -1))
    assert torch.equal(shared, apart)
    sampled = tiny_networks.predict(model, x, float(sigma), [[context, {}]])
    assert torch.allclose(shared, sampled, atol=1e-5 * float(sampled.abs().max()))


def test_patches_and_wrappers_of_the_model_are_at_work(sd1):
    model, clip = sd1
    calls = []
    patched = model.clone()
    patched.set_model_attn2_patch(
        lambda n, context, value, extra: (calls.append(extra["transformer_index"]), (n, context, value))[1]
    )
    patched.add_wrapper_with_key(
        "apply_model", "test", lambda executor, *args, **more: (calls.append("model"), executor(*args, **more))[1]
    )
    with outside_inference(), opened(patched, clip) as network, torch.no_grad():
        loss_of(network, random_rows(16))
    assert calls == ["model", *range(16)]


def test_text_layers_of_the_clip_are_obeyed(sd1):
    model, clip = sd1
    earlier = clip.clone()
    earlier.clip_layer(-2)
    rows = random_rows(16)
    contexts = []
    with outside_inference(), torch.no_grad():
        for each in (clip, earlier, clip):
            with opened(model, each) as network:
                contexts.append(network.encode(0, rows))
    assert torch.equal(contexts[0], contexts[2]) and not torch.allclose(contexts[0], contexts[1])
