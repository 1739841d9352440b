"""GLIDE's noise-aware CLIP: every recorded number of the official code at full size, and the behaviour of a small one.

Tolerances are those that the recording states for float32: embeddings 1e-5 and gradients 2e-5 relative, objectives 1e-4
absolute.
"""

import pytest
import torch
from unit.glide_golden import facts, hashed, images, shrunk, state_dict, tensors

from guidance_lab.guidance import noised_clip

PROMPTS = [[320, 1125, 539, 320, 2368], [], list(range(300, 380))]
INTERMEDIATE = ("blocks.input", "blocks.block_0.f_attn", "blocks.block_0", "blocks.block_5", "blocks.block_11")


def relative(got, expected):
    return ((got.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.fixture(scope="module")
def weights():
    """The public size with formula weights; of the vocabulary only the rows that are used, the rest zero."""
    rows = sorted({token for ids in facts()["token_ids"] for token in ids} | {0})
    return state_dict("image"), state_dict("text", vocabulary_rows=rows)


@pytest.fixture(params=["", "small."])
def full(request, weights):
    """The model; "small." shrinks the residual stream until LayerNorm's epsilon matters."""
    return request.param, noised_clip.load(*(map(shrunk, weights) if request.param == "small." else weights))


@pytest.fixture(scope="module")
def shapes():
    """State-dict shapes of a model with the same architecture, 64 wide, two blocks deep, 16 pixels."""

    def shrink(key, shape):
        named = {
            "blocks.input.w_t": [10, 64],
            "blocks.input.patch_proj": [64, 3, 4, 4],
            "blocks.input.w_pos": [17 if len(shape) == 2 and shape[0] == 257 else 77, 64],
            "blocks.input.w_voc": [50000, 64],
        }
        return named.get(key) or [{768: 64, 512: 64, 3072: 256, 2048: 256}[n] for n in shape]

    def kept(key):
        return ".block_" not in key or key.split(".")[1] in ("block_0", "block_1")

    recorded = facts()["state_dict"]
    return {
        kind: {k: shrink(k, s) for k, s in recorded[f"{kind}_encoder"].items() if kept(k)} for kind in ("image", "text")
    }


@pytest.fixture
def tiny(shapes):
    return noised_clip.load(*(state_dict(kind, shapes=shapes[kind]) for kind in ("image", "text")))


def record(encoder):
    """Collects what each module of an encoder puts out, by its name."""
    seen = {}
    for name, module in encoder.named_modules():
        module.register_forward_hook(lambda module, inputs, output, name=name: seen.__setitem__(name, output.detach()))
    return seen


def test_the_formula_gives_the_recorded_weights():
    for name, check in facts()["weights_check"].items():
        encoder, key = name.removeprefix("glide_").split(".", 1)
        if key == "blocks.input.w_voc":
            continue  # 33 million numbers; the text embeddings below stand on them
        shape = facts()["state_dict"][f"{encoder}_encoder"][key]
        value = state_dict(encoder, shapes={key: shape})[key]
        assert value.flatten()[:4].tolist() == check["first4"] and value.flatten()[-1].item() == check["last"], name
        assert value.double().sum().item() == pytest.approx(check["sum"], abs=1e-6), name


def test_tokens_are_framed_cut_and_padded():
    tokens, lengths = noised_clip.pad_tokens(PROMPTS)
    assert lengths.tolist() == facts()["text_len"] and tokens.shape == (3, 77)
    for row, length, expected in zip(tokens.tolist(), lengths, facts()["token_ids"], strict=True):
        assert row == expected + [0] * (77 - length)


def test_recorded_numbers(full):
    """Text and image embeddings, every intermediate that was recorded, objectives and gradients."""
    variant, model = full
    golden, small = tensors(), variant == "small."
    assert sum(p.numel() for p in model.image_encoder.parameters()) == 86_443_776
    assert sum(p.numel() for p in model.text_encoder.parameters()) == 71_679_488

    seen = record(model.text_encoder)
    tokens, lengths = noised_clip.pad_tokens(PROMPTS)
    text = model.text(tokens, lengths)
    assert relative(text, golden[f"{variant}text.norm"]) < 1e-5
    assert relative(seen["blocks.output"], golden[f"{variant}text.raw"]) < 1e-5
    if not small:
        for name in INTERMEDIATE:
            assert relative(seen[name][:, :2, ::16], golden[f"inter.text.{name}"]) < 1e-5, name
            assert relative(seen[name][range(3), lengths - 1, ::4], golden[f"inter.text.{name}.pooled"]) < 1e-5, name

    seen = record(model.image_encoder)
    for case, facts_of in facts()["small_objectives" if small else "objectives"].items():
        x = images(facts_of["images"]).requires_grad_()
        score = model.objective(x, torch.tensor(facts_of["t"]), text[facts_of["texts"]])
        gradient = facts()["grad_scale"] * torch.autograd.grad(score.sum(), x)[0]
        assert score.sum().item() == pytest.approx(facts_of["objective"], abs=1e-4), case
        assert (score / 100).tolist() == pytest.approx(facts_of["cos"], abs=1e-6), case
        assert relative(gradient[:, :, ::3, ::3], golden[f"{variant}grad.{case}"]) < 2e-5, case
        norms = facts()["tensors"][f"{variant}grad.{case}"]["norm_per_sample"]
        assert gradient.flatten(1).norm(dim=1).tolist() == pytest.approx(norms, rel=2e-5), case
        raw = seen["blocks.output"]
        assert relative(raw / raw.norm(dim=1, keepdim=True), golden[f"{variant}image.{case}.norm"]) < 1e-5, case
        if f"{variant}image.{case}.raw" in golden:
            assert relative(raw, golden[f"{variant}image.{case}.raw"]) < 1e-5, case
        if case == "t250" and not small:
            for name in INTERMEDIATE:
                sampled = seen[name][:, [0, 1, 2, 17, 128, 256], ::16]
                assert relative(sampled, golden[f"inter.image.t250.{name}"]) < 1e-5, name


def test_embeddings_are_normalized_and_the_objective_is_a_hundred_cosines_per_sample(tiny):
    x = hashed("x", [3, 3, 16, 16], 1.0)
    text = tiny.text(*noised_clip.pad_tokens(PROMPTS))
    image = tiny.image(x, [0, 4, 9])
    for embedding in (text, image):
        torch.testing.assert_close(embedding.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(tiny.objective(x, [0, 4, 9], text), 100 * torch.cosine_similarity(image, text))
    torch.testing.assert_close(tiny.objective(x, [0, 4, 9], text[:1])[0], 100 * (image[0] * text[0]).sum())


def test_the_gradient_agrees_with_finite_differences(tiny, generator):
    tiny = tiny.double()
    x = hashed("x", [2, 3, 16, 16], 1.0).double().requires_grad_()
    text = tiny.text(*noised_clip.pad_tokens(PROMPTS[:2]))
    (gradient,) = torch.autograd.grad(tiny.objective(x, [3, 8], text).sum(), x)
    for _ in range(3):
        direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            ahead, behind = (tiny.objective(x + s * direction, [3, 8], text) for s in (1e-6, -1e-6))
        expected = (gradient * direction).flatten(1).sum(1)
        torch.testing.assert_close((ahead - behind) / 2e-6, expected, rtol=1e-6, atol=1e-7)


def test_a_batch_is_so_many_singles_each_at_its_own_timestep(tiny):
    x = hashed("x", [3, 3, 16, 16], 1.0)
    both = tiny.image(x, torch.tensor([2, 7, 2]))
    for i, t in enumerate((2, 7, 2)):
        torch.testing.assert_close(both[i : i + 1], tiny.image(x[i : i + 1], t))
    assert (tiny.image(x[:1], 7) - both[:1]).abs().max() > 1e-3


def test_timesteps_as_a_host_hands_them_over(tiny):
    """One for the batch or one each, integers or the floats that a sampler carries (rounded to the nearest)."""
    x = hashed("x", [2, 3, 16, 16], 1.0)
    expected = tiny.image(x, torch.tensor([3, 3]))
    for same in (3, 3.2, torch.tensor([2.6]), torch.tensor([3.0, 3.4]), torch.tensor(3, dtype=torch.int32)):
        assert torch.equal(tiny.image(x, same), expected)


def test_text_after_the_length_cannot_be_seen(tiny):
    tokens, lengths = noised_clip.pad_tokens(PROMPTS[:1])
    other = tokens.clone()
    other[:, lengths[0] :] = 999
    assert torch.equal(tiny.text(other, lengths), tiny.text(tokens, lengths))
    other[:, 1] = 999
    assert not torch.equal(tiny.text(other, lengths), tiny.text(tokens, lengths))


def test_a_model_loaded_inside_inference_mode_gives_gradients(shapes):
    with torch.inference_mode():
        weights = [
            {k: v.clone() for k, v in state_dict(kind, shapes=shapes[kind]).items()} for kind in ("image", "text")
        ]
        assert weights[0]["blocks.output.f.w"].is_inference()
        model = noised_clip.load(*weights)
    x = hashed("x", [1, 3, 16, 16], 1.0).requires_grad_()
    text = model.text(*noised_clip.pad_tokens(PROMPTS[:1]))
    (gradient,) = torch.autograd.grad(model.objective(x, 5, text).sum(), x)
    assert gradient.abs().sum() > 0
    assert not any(p.requires_grad or p.is_inference() for p in model.parameters()) and not model.training


def test_half_precision_files_load_in_float32(shapes):
    weights = [{k: v.half() for k, v in state_dict(kind, shapes=shapes[kind]).items()} for kind in ("image", "text")]
    assert {p.dtype for p in noised_clip.load(*weights).parameters()} == {torch.float32}


def test_bad_input_is_named(tiny, shapes):
    image, text = (state_dict(kind, shapes=shapes[kind]) for kind in ("image", "text"))
    with pytest.raises(ValueError, match=r"clip_image_enc.pt\): it has no blocks.input.w_t"):
        noised_clip.load(text, image)
    with pytest.raises(ValueError, match=r"clip_text_enc.pt\): it has no blocks.input.w_voc"):
        noised_clip.load(image, image)
    with pytest.raises(ValueError, match="not GLIDE's noised CLIP image encoder.*f_q.weight"):
        noised_clip.load({k: v for k, v in image.items() if k != "blocks.block_1.f_attn.f_q.w"}, text)
    with pytest.raises(ValueError, match="not of one model"):
        noised_clip.load(image, text | {"blocks.output.f.w": torch.zeros(32, 64)})
    x = torch.zeros(2, 3, 16, 16)
    with pytest.raises(ValueError, match=r"\[B, 3, 16, 16\], not \[2, 4, 16, 16\]"):
        tiny.image(torch.zeros(2, 4, 16, 16), 0)
    for t in (10, -1, float("nan")):
        with pytest.raises(ValueError, match="not in 0..9"):
            tiny.image(x, t)
    with pytest.raises(ValueError, match="3 timesteps for 2 images"):
        tiny.image(x, [1, 2, 3])
    tokens, lengths = noised_clip.pad_tokens(PROMPTS)
    with pytest.raises(ValueError, match="with one length for each row"):
        tiny.text(tokens[:, :70], lengths)
    with pytest.raises(ValueError, match="lengths in 1..77"):
        tiny.text(tokens, lengths * 0)
    with pytest.raises(ValueError, match="0..49999"):
        tiny.text(tokens + 1000, lengths)
