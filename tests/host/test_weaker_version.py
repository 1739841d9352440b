"""Weaker Version on real ComfyUI networks: neutral settings, refusals, and each method against its own definition."""

import asyncio
import contextlib

import execution
import nodes as comfy_nodes
import pytest
import tiny_networks
import torch
from comfy.ldm.modules.attention import BasicTransformerBlock, SpatialTransformer
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

from guidance import weaker

NODE = "GuidanceLab_WeakerVersion"
UNETS = ("SD15", "SDXL")
JOINT = ("Flux", "Chroma", "SD3")
DITS = (*JOINT, "AuraFlow", "QwenImage", "WAN21_T2V", "HunyuanVideo", "LTXV")
SIGMA = 0.6


@pytest.fixture(scope="module")
def networks():
    """`networks(name)` → a fresh MODEL of that architecture; built once."""
    built = {}

    def get(name):
        if name not in built:
            built[name] = tiny_networks.build(name)
        return built[name].clone()

    return get


@pytest.fixture
def weaken(run_node):
    """`weaken(model, method, **settings)` → the MODEL that the node gives."""

    def run(model, method, **settings):
        return run_node(NODE, model=model, method={"method": method, **settings})[0]

    return run


def predict(model, name, sigma=SIGMA):
    batch = 1 if name == "LTXV" else 2  # the host's CPU attention cannot broadcast the mask of LTXV over a batch
    size = dict(height=40, width=40) if name == "PixArtAlpha" else {}  # its position code divides by zero on smaller latents
    return tiny_networks.predict(model, tiny_networks.noisy(model, batch, **size), sigma, tiny_networks.positive(1, name))


@contextlib.contextmanager
def hooked(modules, register):
    """`register(module)` → handle, for every module, undone at the end."""
    handles = [register(module) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def stages(model, *blocks):
    """The SpatialTransformer modules of UNet blocks such as ("input", 4)."""
    network = model.model.diffusion_model
    groups = {"input": network.input_blocks, "middle": [network.middle_block], "output": network.output_blocks}
    return [layer for group, index in blocks for layer in groups[group][index] if isinstance(layer, SpatialTransformer)]


EVERY_METHOD = {
    "block_skip": dict(blocks="default"),
    "stochastic_block_skip": dict(drop_fraction=0.3, seed=5),
    "identity_attention": dict(blocks="default"),
    "blurred_queries": dict(blocks="default", blur_sigma=2.0),
    "token_shuffle": dict(blocks="default", seed=5),
    "higher_sigma": dict(sigma_shift=0.2),
}
NEUTRAL = {
    "block_skip": dict(blocks=""),
    "stochastic_block_skip": dict(drop_fraction=0.0, seed=5),
    "identity_attention": dict(blocks=""),
    "blurred_queries": dict(blocks="default", blur_sigma=0.0),
    "token_shuffle": dict(blocks=" ", seed=5),
    "higher_sigma": dict(sigma_shift=0.0),
}


@pytest.mark.parametrize("method", NEUTRAL)
@pytest.mark.parametrize("name", ["SD15", "SDXL", "Flux", "SD3"])
def test_neutral_settings_give_the_same_model(networks, weaken, name, method):
    model = networks(name)
    weak = weaken(model, method, **NEUTRAL[method])
    assert not weak.wrappers and not weak.patches and not weak.model_options["transformer_options"]
    assert torch.equal(predict(weak, name), predict(model, name))


def test_neutral_blend_gives_the_same_model(tiny_model, tiny_model_b, weaken, sample, cond, latent):
    weak = weaken(tiny_model, "weight_blend", base_model=tiny_model_b, amount=0.0)
    assert not weak.patches
    assert torch.equal(sample(weak, cond(1), cond(2), latent(1)), sample(tiny_model, cond(1), cond(2), latent(1)))


@pytest.mark.parametrize("method", EVERY_METHOD)
@pytest.mark.parametrize("name", [*UNETS, *JOINT])
def test_effect_repeats_and_leaves_the_model_alone(networks, weaken, name, method):
    model = networks(name)
    stock = predict(model, name)
    weak = weaken(model, method, **EVERY_METHOD[method])
    runs = [predict(weak, name) for _ in range(3)]
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])
    assert torch.isfinite(runs[0]).all()
    assert (runs[0] - stock).abs().max() > 1e-3
    assert torch.equal(predict(model, name), stock)
    assert not model.wrappers and not model.model_options["transformer_options"]
    assert weak.model is model.model, "a weakened model must share the weights of the model"


@pytest.mark.parametrize("method", EVERY_METHOD)
def test_in_the_ksampler(networks, weaken, sample, latent, method):
    """Alone, at cfg 4, with a sampler that evaluates twice per step."""
    model = networks("SD15")

    def run(which):
        return sample(which, tiny_networks.positive(1), tiny_networks.positive(2), latent(2), steps=2, sampler_name="heun")

    stock = run(model)
    weak = weaken(model, method, **EVERY_METHOD[method])
    first, second = run(weak), run(weak)
    assert torch.equal(first, second)
    assert torch.isfinite(first).all()
    assert not torch.allclose(first, stock, atol=1e-3)
    assert torch.equal(run(model), stock)


def test_patches_already_on_the_model_stay(networks, weaken):
    """A patch put on the model before weakening still acts, and two weakenings add up."""
    model = networks("SD15")
    once = weaken(model, "block_skip", blocks="middle:0")
    twice = weaken(once, "identity_attention", blocks="input:1")
    alone = weaken(model, "identity_attention", blocks="input:1")
    predictions = [predict(each, "SD15") for each in (model, once, twice, alone)]
    assert all(not torch.equal(a, b) for i, a in enumerate(predictions) for b in predictions[:i])


@pytest.mark.parametrize("method", ["stochastic_block_skip", "token_shuffle"])
@pytest.mark.parametrize("name", ["SD15", "Flux"])
def test_random_choices_are_one_for_the_whole_batch(networks, weaken, name, method):
    weak = weaken(networks(name), method, **EVERY_METHOD[method])
    x, positive = tiny_networks.noisy(weak, batch=3), tiny_networks.positive(1, name)
    together = tiny_networks.predict(weak, x, SIGMA, positive)
    alone = torch.cat([tiny_networks.predict(weak, one, SIGMA, positive) for one in x.split(1)])
    assert torch.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("method", ["identity_attention", "blurred_queries", "token_shuffle"])
def test_a_block_replacement_of_another_pack_still_runs(networks, weaken, method):
    settings = {**EVERY_METHOD[method], "blocks": "double:1, single:1"}
    replaced = networks("Flux")
    calls = []

    def passing_on(args, extra):
        calls.append(1)
        return extra["original_block"](args)

    replaced.set_model_patch_replace(passing_on, "dit", "double_block", 1)
    replaced.set_model_patch_replace(passing_on, "dit", "single_block", 1)
    assert torch.equal(predict(weaken(replaced, method, **settings), "Flux"), predict(weaken(networks("Flux"), method, **settings), "Flux"))
    assert len(calls) == 2


def test_skipping_a_stage_leaves_the_count_of_stages_alone(networks, weaken):
    """GLIGEN finds its layers by `transformer_index`."""
    seen = {}

    def counted(which):
        def patch(n, extra):
            seen.setdefault(which, {})[extra["block"], extra["block_index"]] = extra["transformer_index"]
            return n

        return patch

    stock, model = networks("SDXL"), networks("SDXL")
    stock.set_model_attn1_output_patch(counted("stock"))
    model.set_model_attn1_output_patch(counted("weak"))
    predict(stock, "SDXL")
    predict(weaken(model, "block_skip", blocks="input:4"), "SDXL")
    assert {block: index for block, index in seen["stock"].items() if block[0] != ("input", 4)} == seen["weak"]


# --- block skip ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", UNETS)
def test_unet_block_skip_is_the_stage_without_its_residual(networks, weaken, name):
    model = networks(name)
    weak = predict(weaken(model, "block_skip", blocks="input:4, middle:0, output:1-2"), name)
    chosen = stages(model, ("input", 4), ("middle", 0), ("output", 1), ("output", 2))
    with hooked(chosen, lambda stage: stage.register_forward_hook(lambda module, args, output: args[0])):
        assert torch.equal(weak, predict(model, name))


@contextlib.contextmanager
def without(network, shortened):
    """The network without some of its blocks: `shortened` is attribute → indices of the blocks that are taken out."""
    whole = {attribute: getattr(network, attribute) for attribute in shortened}
    try:
        for attribute, indices in shortened.items():
            setattr(network, attribute, torch.nn.ModuleList(block for i, block in enumerate(whole[attribute]) if i not in indices))
        yield
    finally:
        for attribute, blocks in whole.items():
            setattr(network, attribute, blocks)


@pytest.mark.parametrize(
    "name, blocks, shortened",
    [
        ("Flux", "double:1-2, single:0", {"double_blocks": (1, 2), "single_blocks": (0,)}),
        ("SD3", "double:0, double:2", {"joint_blocks": (0, 2)}),
        ("AuraFlow", "double:1", {"double_layers": (1,)}),
        ("QwenImage", "double:1", {"transformer_blocks": (1,)}),
        ("WAN21_T2V", "double:0-1", {"blocks": (0, 1)}),
        ("HunyuanVideo", "double:1, single:3", {"double_blocks": (1,), "single_blocks": (3,)}),
        ("LTXV", "double:2", {"transformer_blocks": (2,)}),
    ],
)
def test_dit_block_skip_is_the_network_without_those_blocks(networks, weaken, name, blocks, shortened):
    model = networks(name)
    stock, weak = predict(model, name), predict(weaken(model, "block_skip", blocks=blocks), name)
    with without(model.model.diffusion_model, shortened):
        assert torch.equal(weak, predict(model, name))
    assert not torch.equal(weak, stock)


def test_chroma_block_skip_is_chromas_own_skip_list(networks, weaken, monkeypatch):
    model = networks("Chroma")
    weak = predict(weaken(model, "block_skip", blocks="double:1, single:0"), "Chroma")
    monkeypatch.setattr(model.model.diffusion_model, "skip_mmdit", [1])
    monkeypatch.setattr(model.model.diffusion_model, "skip_dit", [0])
    assert torch.equal(weak, predict(model, "Chroma"))


@pytest.mark.parametrize("name", ["SD15", "Flux"])
def test_stochastic_skip_is_drawn_by_seed_and_sigma(networks, weaken, name):
    model = networks(name)
    chosen = {"SD15": "input:1-2, input:4-5, middle:0, output:0-5", "Flux": "double:0-3, single:0-3"}[name]
    available = [tuple(part.split(":")) for part in chosen.replace(" ", "").split(",")]
    names = [(g, i) for g, r in available for i in range(int(r.split("-")[0]), int(r.split("-")[-1]) + 1)]

    def expected(seed, sigma):
        drawn = weaker.choose_blocks(names[1:-1], 0.3, weaker.step_generator(seed, sigma))
        text = ", ".join(f"{group}:{index}" for group, index in drawn)
        return predict(weaken(model, "block_skip", blocks=text), name, sigma)

    weak = weaken(model, "stochastic_block_skip", drop_fraction=0.3, seed=7)
    other = weaken(model, "stochastic_block_skip", drop_fraction=0.3, seed=8)
    for sigma in (0.9, 0.5, 0.9, 0.2):
        assert torch.equal(predict(weak, name, sigma), expected(7, sigma))
        assert torch.equal(predict(other, name, sigma), expected(8, sigma))
    sigmas = [step / 20 for step in range(1, 20)]
    assert any(not torch.equal(predict(weak, name, sigma), predict(other, name, sigma)) for sigma in sigmas)


# --- attention on UNets -------------------------------------------------------------------------------------------------


def self_attentions(model, *blocks):
    return [block.attn1 for stage in stages(model, *blocks) for block in stage.transformer_blocks]


@pytest.mark.parametrize("name", UNETS)
def test_unet_identity_attention_returns_the_values(networks, weaken, name):
    model = networks(name)
    weak = predict(weaken(model, "identity_attention", blocks="default"), name)
    modules = self_attentions(model, ("middle", 0))
    with hooked(modules, lambda attn: attn.register_forward_hook(lambda module, args, output: module.to_out(module.to_v(args[0])))):
        assert torch.equal(weak, predict(model, name))


def blurred_by_hand(x, height, width, sigma):
    """Weighted means over the grid, one token at a time; sigma None is infinite."""
    out = torch.empty_like(x)
    for token in range(height * width):
        row, column = divmod(token, width)
        distance = torch.tensor([(row - other // width) ** 2 + (column - other % width) ** 2 for other in range(height * width)])
        weights = torch.ones(height * width) if sigma is None else torch.exp(-distance.double() / (2 * sigma**2)).float()
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


# --- attention on diffusion transformers --------------------------------------------------------------------------------

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
        image = blurred_by_hand(q[..., TEXT:, :].flatten(0, 1), *GRID, None if sigma == 9999.0 else sigma).unflatten(0, q.shape[:2])
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
    """An attention override that was on the model (SageAttention and the like) computes what the weakening leaves over."""
    model = networks(name)
    calls = []

    def counting(func, *args, **kwargs):
        calls.append(1)
        return func(*args, **kwargs)

    model.model_options["transformer_options"]["optimized_attention_override"] = counting
    weak = weaken(model, "blurred_queries", blocks="default", blur_sigma=3.0)
    plain = networks(name)
    assert torch.equal(predict(weak, name), predict(weaken(plain, "blurred_queries", blocks="default", blur_sigma=3.0), name))
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

    handles = [block.register_forward_pre_hook(before, with_kwargs=True), block.register_forward_hook(after, with_kwargs=True)]
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


# --- higher sigma -------------------------------------------------------------------------------------------------------


def network_output(model, x_in, t, name):
    """The bare network, without any of ComfyUI's scaling or conversion."""
    context, options = tiny_networks.positive(1, name)[0]
    context = context.expand(x_in.shape[0], -1, -1)
    extra = {"y": options["pooled_output"].expand(x_in.shape[0], -1)} if name in ("Flux", "SD3") else {}
    if name == "Flux":
        extra["guidance"] = torch.tensor([3.5])
    with torch.inference_mode():
        return model.model.diffusion_model(x_in, t, context=context, transformer_options={}, **extra)


@pytest.mark.parametrize("sigma", [0.05, 1.0, 10.0])
@pytest.mark.parametrize("prediction", ["eps", "v_prediction"])
def test_higher_sigma_shifts_only_the_timestep_eps_and_v(networks, weaken, sigma, prediction):
    model = ModelSamplingDiscrete().patch(networks("SD15"), prediction, False)[0]
    weak = predict(weaken(model, "higher_sigma", sigma_shift=0.2), "SD15", sigma)
    x = tiny_networks.noisy(model)
    shifted = model.get_model_object("model_sampling").timestep(torch.tensor([sigma * 1.2] * 2)).float()
    out = network_output(model, x / (sigma**2 + 1) ** 0.5, shifted, "SD15")
    x0 = x - sigma * out if prediction == "eps" else x / (sigma**2 + 1) - out * sigma / (sigma**2 + 1) ** 0.5
    assert torch.allclose(weak, x0, atol=2e-5 * max(1.0, sigma))
    assert (weak - predict(model, "SD15", sigma)).abs().max() > 1e-3 * sigma


@pytest.mark.parametrize("name", ["Flux", "SD3"])
def test_higher_sigma_shifts_only_the_timestep_flow(networks, weaken, name):
    model = networks(name)
    weak = predict(weaken(model, "higher_sigma", sigma_shift=0.1), name)
    x = tiny_networks.noisy(model)
    timestep = model.get_model_object("model_sampling").timestep(torch.tensor([SIGMA * 1.1] * 2))
    x0 = x - SIGMA * network_output(model, x, timestep, name)
    assert torch.allclose(weak, x0, atol=2e-5)
    assert (weak - predict(model, name)).abs().max() > 1e-3


def test_higher_sigma_stops_at_the_highest_one(networks, weaken):
    """At sigma_max there is no higher noise level that the network knows: the prediction is the model's own, bit for bit."""
    model = networks("Flux")
    weak = weaken(model, "higher_sigma", sigma_shift=0.5)
    assert torch.equal(predict(weak, "Flux", 1.0), predict(model, "Flux", 1.0))
    assert not torch.equal(predict(weak, "Flux", 0.99), predict(model, "Flux", 0.99))


# --- weights ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("amount", [0.25, 1.0])
def test_blend_is_the_merged_checkpoint(weaken, amount):
    model, base, merged = (tiny_networks.build("SD15", seed) for seed in (1, 2, 3))
    with torch.no_grad():
        for target, a, b in zip(*(m.model.diffusion_model.parameters() for m in (merged, model, base)), strict=True):
            target.copy_((1 - amount) * a + amount * b)
    stock, stock_base = predict(model, "SD15"), predict(base, "SD15")
    weak = weaken(model, "weight_blend", base_model=base, amount=amount)
    assert torch.allclose(predict(weak, "SD15"), predict(merged, "SD15"), atol=1e-5)
    assert torch.equal(predict(model, "SD15"), stock)
    assert torch.equal(predict(base, "SD15"), stock_base)
    if amount == 1.0:
        assert torch.allclose(predict(weak, "SD15"), stock_base, atol=1e-5)


def test_blend_keeps_a_lora_on_the_base_and_on_the_model(weaken):
    """Patches of either side take part: θ_B = (1 − a)·(θ_M + ΔM) + a·(θ_base + Δbase)."""
    model, base, merged = (tiny_networks.build("SD15", seed) for seed in (1, 2, 3))
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v.weight"
    shape = model.model_state_dict()[key].shape
    on_model, on_base = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in (4, 5))
    with torch.no_grad():
        for target, a, b in zip(*(m.model.diffusion_model.parameters() for m in (merged, model, base)), strict=True):
            target.copy_(0.5 * a + 0.5 * b)
        merged.model_state_dict()[key].add_(0.5 * on_model + 0.5 * on_base)
    model.add_patches({key: ("diff", (on_model,))})
    base.add_patches({key: ("diff", (on_base,))})
    weak = weaken(model, "weight_blend", base_model=base, amount=0.5)
    assert torch.allclose(predict(weak, "SD15"), predict(merged, "SD15"), atol=1e-5)


# --- refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["block_skip", "stochastic_block_skip", "identity_attention", "blurred_queries", "token_shuffle"])
def test_a_model_without_block_hooks_is_refused(networks, weaken, method):
    with pytest.raises(ValueError, match="no checked hook into the blocks of PixArtMS.*higher_sigma or weight_blend"):
        weaken(networks("PixArtAlpha"), method, **EVERY_METHOD[method])


def test_a_model_without_block_hooks_can_be_told_a_higher_sigma(networks, weaken):
    model = networks("PixArtAlpha")
    assert not torch.equal(predict(weaken(model, "higher_sigma", sigma_shift=0.3), "PixArtAlpha"), predict(model, "PixArtAlpha"))


def test_a_video_unet_is_refused(weaken):
    """Its hooks act on the attention over time as well, which none of the papers damages."""
    temporal = dict(use_temporal_attention=True, extra_ff_mix_layer=True, merge_strategy="learned", merge_factor=0.5)
    video = tiny_networks.build("SD15", config={**tiny_networks.SD15, **temporal})
    with pytest.raises(ValueError, match="no checked hook into the blocks of UNetModel"):
        weaken(video, "token_shuffle", **EVERY_METHOD["token_shuffle"])


@pytest.mark.parametrize("method", ["identity_attention", "blurred_queries"])
@pytest.mark.parametrize("name", [name for name in DITS if name not in JOINT])
def test_attention_of_unknown_layout_is_refused(networks, weaken, name, method):
    with pytest.raises(ValueError, match="cannot be told apart"):
        weaken(networks(name), method, **EVERY_METHOD[method])


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("SD15", "middle:1", r"no block 'middle:1'.*input:1-2, input:4-5, middle:0, output:0-5"),
        ("SD15", "output:5-3", "no block 'output:5-3'"),
        ("SDXL", "input:1", r"no block 'input:1'.*input:4-5, middle:0, output:0-2"),
        ("SD15", "double:0", "no block 'double:0'"),
        ("Flux", "double:9, single:0", r"no block 'double:9'.*double:0-3, single:0-3"),
        ("Flux", "7,8,9", "cannot read the block '7'"),
    ],
)
def test_unknown_blocks_are_refused_with_the_list(networks, weaken, name, text, message):
    with pytest.raises(ValueError, match=message):
        weaken(networks(name), "block_skip", blocks=text)


def test_blend_of_another_architecture_is_refused(networks, weaken):
    with pytest.raises(ValueError, match="not the same architecture.*weights differ in name or shape, first diffusion_model"):
        weaken(networks("SD15"), "weight_blend", base_model=networks("SDXL"), amount=0.5)


def test_unknown_method_gets_a_sentence(networks, run_node):
    """ComfyUI leaves the input out when the saved option does not exist."""
    with pytest.raises(ValueError, match="does not know this method: choose one of block_skip, stochastic_block_skip"):
        run_node(NODE, model=networks("SD15"))


def test_every_option_says_where_it_comes_from(pack_nodes):
    method = next(i for i in pack_nodes[NODE].GET_SCHEMA().inputs if i.id == "method")
    for option in method.options:
        tooltips = " ".join(setting.tooltip or "" for setting in option.inputs)
        assert all(setting.tooltip for setting in option.inputs)
        assert "arXiv" in tooltips or option.key == "block_skip"


# --- in the pair --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", EVERY_METHOD)
@pytest.mark.parametrize("name", ["SD15", "Flux"])
def test_as_the_guide_of_the_model_pair(networks, weaken, run_node, name, method):
    """D = M + (w - 1)(M - B) with B the weak model's own prediction, on the one module that both share."""
    model = networks(name)
    weak = weaken(model, method, **EVERY_METHOD[method])
    pair = run_node("GuidanceLab_AutoguidanceModelPair", model=model, guide_model=weak, weight=1.7, start_percent=0.0, end_percent=1.0)[0]
    main, guide = predict(model, name), predict(weak, name)
    assert torch.equal(predict(pair, name), main + (1.7 - 1.0) * (main - guide))
    assert torch.equal(predict(model, name), main)


def test_blend_as_the_guide_of_the_model_pair(weaken, run_node):
    model, base = (tiny_networks.build("SD15", seed) for seed in (1, 2))
    weak = weaken(model, "weight_blend", base_model=base, amount=0.5)
    pair = run_node("GuidanceLab_AutoguidanceModelPair", model=model, guide_model=weak, weight=1.7, start_percent=0.0, end_percent=1.0)[0]
    main, guide = predict(model, "SD15"), predict(weak, "SD15")
    assert not torch.allclose(main, guide, atol=1e-3)
    assert torch.allclose(predict(pair, "SD15"), main + 0.7 * (main - guide), atol=1e-5)


# --- as a queued prompt -------------------------------------------------------------------------------------------------


def queue_errors(pack_nodes, monkeypatch, **inputs) -> str:
    """What ComfyUI answers when the prompt is queued; empty when it is accepted."""
    monkeypatch.setitem(comfy_nodes.NODE_CLASS_MAPPINGS, NODE, pack_nodes[NODE])
    prompt = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "some.safetensors"}},
        "2": {"class_type": NODE, "inputs": {"model": ["1", 0], **inputs}},
    }
    monkeypatch.setattr(comfy_nodes.CheckpointLoaderSimple, "INPUT_TYPES", classmethod(lambda s: {"required": {}}))
    valid, errors, _ = asyncio.run(execution.validate_inputs("prompt", prompt, "2", {}))
    assert valid != bool(errors)
    return " ".join(error["details"] for error in errors)


def test_prompts_are_checked_when_queued(pack_nodes, monkeypatch):
    def errors(**inputs):
        return queue_errors(pack_nodes, monkeypatch, **inputs)

    assert errors(method="block_skip", **{"method.blocks": "default"}) == ""
    assert errors(method="weight_blend", **{"method.base_model": ["1", 0], "method.amount": 0.5}) == ""
    assert errors(method="higher_sigma", **{"method.sigma_shift": 0.1}) == ""
    assert "sigma_shift" in errors(method="higher_sigma")
    assert "method.sigma_shift" in errors(method="higher_sigma", **{"method.sigma_shift": 7.0})
    assert "base_model" in errors(method="weight_blend", **{"method.amount": 0.5})
