"""Weaker Version, the attention methods on transformers with one attention over text and picture, each against its own
definition on real ComfyUI networks; and that other attentions of the same networks are left alone.
"""

import node_helpers
import pytest
import tiny_families
import tiny_networks
import torch
from tiny_networks import positive
from weaker_tools import SIGMA

# name → (text tokens in an attention, picture tokens with padding, blocks to weaken)
GRID = (4, 3)  # an 8 x 6 latent in patches of 2
FAMILIES = {
    "AuraFlow": (5 + 8, 12, "double:0-3"),  # eight register tokens stand before the text
    "QwenImage": (5, 12, "double:0-3"),
    "HunyuanVideo": (5, 12, "double:0-3, single:0-3"),
    "Lumina2": (5, 12, "double:0-3"),
    "ZImage": (16, 16, "double:0-3"),  # text and picture are padded to multiples of 16
    "ZImagePixelSpace": (16, 16, "double:0-3"),
    "ChromaRadiance": (5, 12, "double:0-2, single:0-2"),
}
COUNT = {"HunyuanVideo": 8, "ChromaRadiance": 6}  # blocks that are weakened, where they are not four


@pytest.fixture(scope="module")
def networks():
    built = {}

    def get(name):
        if name not in built:
            built[name] = tiny_families.build(name)
        return built[name].clone()

    return get


def noisy(model, name, frames=1):
    scale = 2 if name in ("ZImagePixelSpace", "ChromaRadiance") else 1  # patches of 4
    x = tiny_networks.noisy(model, 2, 8 * scale, 6 * scale)
    return x.repeat(1, 1, frames, 1, 1) + torch.arange(frames)[:, None, None] if frames > 1 else x


def predict(model, name, x):
    return tiny_networks.predict(model, x, SIGMA, positive(1))


def with_attention(model, text, picture, attention, seen, blocks=None, limit=8):
    """The MODEL with `attention(q, k, v)` on (batch, heads, tokens, width) where text and picture are attended to."""

    def override(func, q, k, v, heads, *args, **kwargs):
        in_heads = kwargs.get("skip_reshape")
        count = q.shape[-2] if in_heads else q.shape[1]
        where = kwargs["transformer_options"]
        # The host numbers blocks in most families; in AuraFlow the double blocks are the first four.
        here = seen.count("joint") < limit and (blocks is None or where.get("block_index") in blocks)
        if count != text + picture or not here:
            seen.append("other")
            return func(q, k, v, heads, *args, **kwargs)
        seen.append("joint")
        if not in_heads:
            q, k, v = (t.reshape(*t.shape[:2], heads, -1).transpose(1, 2) for t in (q, k, v))
        return attention(q, k, v).transpose(1, 2).flatten(-2)

    clone = model.clone()
    clone.model_options["transformer_options"]["optimized_attention_override"] = override
    return clone


def attend(q, k, v, mask=0.0):
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + mask).softmax(-1) @ v


@pytest.mark.parametrize("name", FAMILIES)
def test_identity_attention_is_a_masked_attention(networks, weaken, name):
    text, picture, blocks = FAMILIES[name]
    model, seen = networks(name), []
    x = noisy(model, name)

    def masked(q, k, v):
        mask = torch.zeros(text + picture, text + picture)
        mask[text:, text:] = torch.where(torch.eye(picture, dtype=torch.bool), 0.0, float("-inf"))
        return attend(q, k, v, mask)

    weak = predict(weaken(model, "identity_attention", blocks=blocks), name, x)
    by_hand = with_attention(model, text, picture, masked, seen, limit=COUNT.get(name, 4))
    assert torch.allclose(weak, predict(by_hand, name, x), atol=2e-5)
    assert seen.count("joint") == COUNT.get(name, 4)
    assert not torch.allclose(weak, predict(model, name, x), atol=1e-3)


def blurred(grid, sigma):
    """The (cells, cells) matrix of Gaussian weights between the cells of a grid; sigma 9999 is the mean."""
    height, width = grid
    rows, columns = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
    distance = (rows[:, None] - rows) ** 2 + (columns[:, None] - columns) ** 2
    weights = torch.ones(distance.shape) if sigma == 9999.0 else torch.exp(-distance / (2 * sigma**2))
    return weights / weights.sum(1, keepdim=True)


@pytest.mark.parametrize("name, frames", [*((name, 1) for name in FAMILIES), ("HunyuanVideo", 2)])
@pytest.mark.parametrize("sigma", [0.7, 9999.0])
def test_blurred_queries(networks, weaken, name, sigma, frames):
    """In a video each frame is blurred by itself."""
    text, picture, blocks = FAMILIES[name]
    picture *= frames
    model, seen = networks(name), []
    x = noisy(model, name, frames)
    matrix = blurred(GRID, sigma)

    def attention(q, k, v):
        q = q.clone()
        for frame in range(frames):
            cells = slice(text + 12 * frame, text + 12 * frame + 12)
            q[..., cells, :] = matrix @ q[..., cells, :]
        return attend(q, k, v)

    weak = predict(weaken(model, "blurred_queries", blocks=blocks, blur_sigma=sigma), name, x)
    by_hand = with_attention(model, text, picture, attention, seen, limit=COUNT.get(name, 4))
    assert torch.allclose(weak, predict(by_hand, name, x), atol=2e-5)
    assert "joint" in seen
    assert not torch.allclose(weak, predict(model, name, x), atol=1e-3)


@pytest.mark.parametrize("name", ["Lumina2", "ZImage", "ZImagePixelSpace", "QwenImage"])
def test_only_the_chosen_blocks(networks, weaken, name):
    text, picture, _ = FAMILIES[name]
    model, seen = networks(name), []
    x = noisy(model, name)

    def values(q, k, v):
        mask = torch.zeros(text + picture, text + picture)
        mask[text:, text:] = torch.where(torch.eye(picture, dtype=torch.bool), 0.0, float("-inf"))
        return attend(q, k, v, mask)

    weak = predict(weaken(model, "identity_attention", blocks="double:2"), name, x)
    by_hand = with_attention(model, text, picture, values, seen, blocks={2})
    assert torch.allclose(weak, predict(by_hand, name, x), atol=2e-5) and seen.count("joint") == 1


def test_reference_pictures_come_first_and_are_seen(networks, weaken):
    """Z-Image Omni: the picture is the last tokens, and only its queries change."""
    name = "ZImage"
    model = networks(name)
    reference = torch.randn(1, 16, 8, 6, generator=torch.Generator().manual_seed(4))
    conditioning = node_helpers.conditioning_set_values(positive(1), {"reference_latents": [reference]})
    x = noisy(model, name)[:1]
    weak = weaken(model, "blurred_queries", blocks="double:0-3", blur_sigma=9999.0)
    seen, matrix = [], blurred(GRID, 9999.0)
    padded = FAMILIES[name][1]

    def override(func, q, k, v, heads, *args, **kwargs):
        if kwargs["transformer_options"].get("block_type") != "double":
            return func(q, k, v, heads, *args, **kwargs)
        seen.append(q.shape[-2])
        first = q.shape[-2] - padded
        q = q.clone()
        q[..., first : first + 12, :] = matrix @ q[..., first : first + 12, :]
        return attend(q, k, v).transpose(1, 2).flatten(-2)

    by_hand = model.clone()
    by_hand.model_options["transformer_options"]["optimized_attention_override"] = override
    results = [tiny_networks.predict(m, x, SIGMA, conditioning) for m in (weak, by_hand)]
    assert torch.allclose(*results, atol=2e-5)
    assert len(seen) == 4 and seen[0] >= 2 * padded + 5


@pytest.mark.parametrize("name", ["Lumina2", "ZImage", "ZImagePixelSpace"])
def test_whole_blocks_of_a_network_without_their_hook_are_refused(networks, weaken, name):
    with pytest.raises(ValueError, match="no checked hook.*NextDiT.*identity_attention, blurred_queries"):
        weaken(networks(name), "block_skip", blocks="default")


@pytest.mark.parametrize("name", FAMILIES)
def test_as_the_guide_of_the_model_pair(networks, weaken, run_node, name):
    model = networks(name)
    x = noisy(model, name)
    weak = weaken(model, "identity_attention", blocks="default")
    pair = run_node("GuidanceLab_AutoguidanceModelPair", model=model, guide_model=weak, weight=1.7)[0]
    main, guide = predict(model, name, x), predict(weak, name, x)
    assert torch.equal(predict(pair, name, x), main + (1.7 - 1.0) * (main - guide))
