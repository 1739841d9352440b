"""Weaker Version, the attention methods, each against its own definition on real UNets and diffusion transformers."""

import pytest
import tiny_networks
import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from weaker_tools import DITS, JOINT, SIGMA, UNETS, hooked, predict, stages

from guidance_lab.guidance import weaker

# --- attention on UNets
# -------------------------------------------------------------------------------------------------


def self_attentions(model, *blocks):
    return [block.attn1 for stage in stages(model, *blocks) for block in stage.transformer_blocks]


@pytest.mark.parametrize("name", UNETS)
def test_unet_identity_attention_returns_the_values(networks, weaken, name):
    model = networks(name)
    weak = predict(weaken(model, "identity_attention", blocks="default"), name)
    modules = self_attentions(model, ("middle", 0))
    with hooked(
        modules,
        lambda attn: attn.register_forward_hook(lambda module, args, output: module.to_out(module.to_v(args[0]))),
    ):
        assert torch.equal(weak, predict(model, name))


def blurred_by_hand(x, height, width, sigma):
    """Weighted means over the grid, one token at a time; sigma None is infinite."""
    out = torch.empty_like(x)
    for token in range(height * width):
        row, column = divmod(token, width)
        distance = torch.tensor(
            [(row - other // width) ** 2 + (column - other % width) ** 2 for other in range(height * width)]
        )
        weights = (
            torch.ones(height * width) if sigma is None else torch.exp(-distance.double() / (2 * sigma**2)).float()
        )
        out[:, token] = (x * (weights / weights.sum())[None, :, None]).sum(1)
    return out


@pytest.mark.parametrize("name", UNETS)
@pytest.mark.parametrize("sigma", [0.7, 9999.0])
def test_unet_blurred_queries(networks, weaken, name, sigma):
    model = networks(name)
    weak = predict(weaken(model, "blurred_queries", blocks="input:4, middle:0", blur_sigma=sigma), name)

    def blurred(module, args, output):
        x = args[0]
        q, k, v = module.to_q(x), module.to_k(x), module.to_v(x)
        q = q.mean(1, keepdim=True).expand_as(q) if sigma == 9999.0 else blurred_by_hand(q, 4, 3, sigma)
        q, k, v = (t.unflatten(-1, (module.heads, module.dim_head)).transpose(1, 2) for t in (q, k, v))
        weights = (q @ k.transpose(-1, -2) * module.dim_head**-0.5).softmax(-1)
        return module.to_out((weights @ v).transpose(1, 2).flatten(-2))

    with hooked(self_attentions(model, ("input", 4), ("middle", 0)), lambda attn: attn.register_forward_hook(blurred)):
        assert torch.allclose(weak, predict(model, name), atol=2e-5)


@pytest.mark.parametrize("name", UNETS)
def test_unet_token_shuffle_permutes_the_input_of_each_block(networks, weaken, name):
    """TPG as published: the block sees Sx instead of x, and nothing puts the tokens back."""
    model = networks(name)
    weak = predict(weaken(model, "token_shuffle", blocks="input:4, middle:0", seed=3), name)
    generator = weaker.step_generator(3, SIGMA)

    def shuffle(module, args, kwargs):
        return (args[0][:, torch.randperm(args[0].shape[1], generator=generator)], *args[1:]), kwargs

    modules = [block for stage in stages(model, ("input", 4), ("middle", 0)) for block in stage.transformer_blocks]
    assert all(isinstance(module, BasicTransformerBlock) for module in modules)
    with hooked(modules, lambda block: block.register_forward_pre_hook(shuffle, with_kwargs=True)):
        assert torch.allclose(weak, predict(model, name), atol=2e-5)


# --- attention on diffusion transformers
# --------------------------------------------------------------------------------

ALL_BLOCKS = {"Flux": "double:0-3, single:0-3", "Chroma": "double:0-2, single:0-2", "SD3": "double:0-3"}
GRID = (4, 3)  # an 8 x 6 latent in patches of 2
TEXT = 5


def with_attention(model, attention):
    """The MODEL with every attention replaced by `attention(q, k, v)` on (batch, heads, tokens, width)."""

    def override(func, q, k, v, heads, *args, skip_reshape=False, **kwargs):
        if not skip_reshape:
            q, k, v = (t.reshape(*t.shape[:2], heads, -1).transpose(1, 2) for t in (q, k, v))
        return attention(q, k, v).transpose(1, 2).flatten(-2)

    clone = model.clone()
    clone.model_options["transformer_options"]["optimized_attention_override"] = override
    return clone


@pytest.mark.parametrize("name", JOINT)
def test_dit_identity_attention_is_a_masked_attention(networks, weaken, name):
    """PAG for joint attention written as one mask: the image-to-image part is minus infinity off the diagonal."""
    model = networks(name)
    weak = predict(weaken(model, "identity_attention", blocks=ALL_BLOCKS[name]), name)

    def masked(q, k, v):
        image = q.shape[-2] - TEXT
        mask = torch.zeros(q.shape[-2], q.shape[-2])
        mask[TEXT:, TEXT:] = torch.where(torch.eye(image, dtype=torch.bool), 0.0, float("-inf"))
        return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + mask).softmax(-1) @ v

    assert torch.allclose(weak, predict(with_attention(model, masked), name), atol=2e-5)
    assert not torch.allclose(weak, predict(model, name), atol=1e-3)


@pytest.mark.parametrize("name", JOINT)
@pytest.mark.parametrize("sigma", [0.7, 9999.0])
def test_dit_blurred_queries(networks, weaken, name, sigma):
    model = networks(name)
    weak = predict(weaken(model, "blurred_queries", blocks=ALL_BLOCKS[name], blur_sigma=sigma), name)

    def blurred(q, k, v):
        image = blurred_by_hand(q[..., TEXT:, :].flatten(0, 1), *GRID, None if sigma == 9999.0 else sigma).unflatten(
            0, q.shape[:2]
        )
        q = torch.cat((q[..., :TEXT, :], image), dim=-2)
        return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1) @ v

    assert torch.allclose(weak, predict(with_attention(model, blurred), name), atol=2e-5)


def test_sd35_second_attention_over_image_tokens_only(weaken):
    """SD3.5 medium has a second self-attention without text: there the identity is out = v."""
    layers = {**tiny_networks.SD3, "x_block_self_attn": True, "x_block_self_attn_layers": [0, 1]}
    model = tiny_networks.build("SD3", config=layers)
    weak = predict(weaken(model, "identity_attention", blocks="double:0-3"), "SD3")

    def masked(q, k, v):
        text = TEXT if q.shape[-2] == TEXT + GRID[0] * GRID[1] else 0
        mask = torch.zeros(q.shape[-2], q.shape[-2])
        mask[text:, text:] = torch.where(torch.eye(q.shape[-2] - text, dtype=torch.bool), 0.0, float("-inf"))
        return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + mask).softmax(-1) @ v

    assert torch.allclose(weak, predict(with_attention(model, masked), "SD3"), atol=2e-5)


@pytest.mark.parametrize("name", JOINT)
def test_attention_of_another_pack_still_runs(networks, weaken, name):
    """An attention override that was on the model (SageAttention and the like) computes what the weakening leaves
    over.
    """
    model = networks(name)
    calls = []

    def counting(func, *args, **kwargs):
        calls.append(1)
        return func(*args, **kwargs)

    model.model_options["transformer_options"]["optimized_attention_override"] = counting
    weak = weaken(model, "blurred_queries", blocks="default", blur_sigma=3.0)
    plain = networks(name)
    assert torch.equal(
        predict(weak, name), predict(weaken(plain, "blurred_queries", blocks="default", blur_sigma=3.0), name)
    )
    per_run = len(calls)
    predict(model, name)
    assert per_run == len(calls) - per_run > 0


@pytest.mark.parametrize(
    "name, attribute, group",
    [("Flux", "double_blocks", "double"), ("Flux", "single_blocks", "single"), ("SD3", "joint_blocks", "double")],
)
def test_dit_token_shuffle_scrambles_the_update_of_a_block(networks, weaken, name, attribute, group):
    model = networks(name)
    weak = predict(weaken(model, "token_shuffle", blocks=f"{group}:1", seed=3), name)
    block = getattr(model.model.diffusion_model, attribute)[1]
    tokens = GRID[0] * GRID[1]
    order = torch.randperm(tokens, generator=weaker.step_generator(3, SIGMA))
    first = TEXT if group == "single" else 0
    order = torch.cat((torch.arange(first), order + first))
    state = {}

    def before(module, args, kwargs):
        args, kwargs = list(args), dict(kwargs)
        place = (kwargs, "img") if "img" in kwargs else (args, 1 if name == "SD3" else 0)
        state["x"] = place[0][place[1]].clone()
        place[0][place[1]] = state["x"][:, order]
        return tuple(args), kwargs

    def after(module, args, kwargs, output):
        x = state["x"]
        image_first = name == "Flux" and group == "double"
        out = output[0] if image_first else (output[1] if name == "SD3" else output)
        changed = x + out - x[:, order]
        changed = torch.cat((out[:, :first], changed[:, first:]), dim=1)
        return (changed, output[1]) if image_first else ((output[0], changed) if name == "SD3" else changed)

    handles = [
        block.register_forward_pre_hook(before, with_kwargs=True),
        block.register_forward_hook(after, with_kwargs=True),
    ]
    try:
        assert torch.allclose(weak, predict(model, name), atol=2e-5)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("name", DITS)
def test_token_shuffle_works_wherever_blocks_can_be_replaced(networks, weaken, name):
    model = networks(name)
    weak = weaken(model, "token_shuffle", blocks="default", seed=1)
    assert torch.isfinite(predict(weak, name)).all()
    assert not torch.equal(predict(weak, name), predict(model, name))
