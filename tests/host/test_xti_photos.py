"""XTI Photos and what XTI Train makes of it: sizes, masks, captions, checkpoints, the best token, less memory, SDXL."""

import numpy as np
import pytest
import torch
import xti_tools as tools
from PIL import Image
from xti_tools import latents, opened, outside_inference, train

from guidance_lab import xti
from guidance_lab.nodes.layers.xti_photos import Photos, with_token
from guidance_lab.xti.losses import reconstruction_loss
from guidance_lab.xti.training import rate_factor


class Halver:
    """A VAE in which a latent is the picture at an eighth: its three colours and their mean, in [0, 1]."""

    def encode(self, pixels):
        small = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8)
        return torch.cat([small, small.mean(1, keepdim=True)], 1)


@pytest.fixture
def model():
    return tools.sixteen_layers()


@pytest.fixture
def clip():
    return tools.sd1_clip()


@pytest.fixture
def output(tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return tmp_path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An input folder with photos of three shapes: sideways by EXIF, cut out, in 16 bits; two with a caption."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path))
    place = tmp_path / "my dog"
    place.mkdir()
    wide = np.zeros((48, 96, 3), np.uint8)
    wide[:, 48:] = (250, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    Image.fromarray(wide).save(place / "a.png", exif=exif)
    cut = np.zeros((64, 64, 4), np.uint8)
    cut[16:48, 16:48] = (0, 255, 0, 255)
    Image.fromarray(cut).save(place / "b.png")
    Image.fromarray(np.full((64, 64), 40000, np.uint16)).save(place / "c.png")
    (place / "a.txt").write_text("a sks, (side view)\n", encoding="utf-8-sig")
    (place / "b.txt").write_text("green", encoding="utf-8")
    (place / "notes.md").write_text("not a photo")
    return "my dog"


def photos_of(run_node, **options):
    """(photos, pictures), every input as the list that ComfyUI makes of it."""
    given = {"vae": Halver(), "size": 64, **options}
    lists = {"images", "masks", "texts"}
    return run_node(
        "GuidanceLab_XTIPhotos", **{name: value if name in lists else [value] for name, value in given.items()}
    )


def same(a, b) -> bool:
    return all(torch.equal(a.layers[name], b.layers[name]) for name in a.layers)


def test_a_folder_of_photos(run_node, folder):
    photos, pictures = photos_of(run_node, folder=folder, word="SKS")
    assert [tuple(picture.shape) for picture in pictures] == [(1, 80, 40, 3), (1, 64, 64, 3), (1, 64, 64, 3)]
    assert pictures[0][0, 10, 20].tolist() == [0, 0, 0] and pictures[0][0, 70, 20, 0] > 0.97
    assert photos.captions == ["a {}, \\(side view\\)", "{}, green", None]
    assert photos.masks[0] is None and photos.masks[2] is None
    inside = torch.zeros(1, 8, 8)
    inside[:, 2:6, 2:6] = 1
    assert torch.equal(photos.masks[1], inside)
    assert pictures[1][0, 0, 0].tolist() == [0.5, 0.5, 0.5] and pictures[1][0, 32, 32].tolist() == [0, 1, 0]
    assert pictures[2].unique().tolist() == pytest.approx([40000 / 65535], abs=2 / 255)


def test_fits_and_flips(run_node):
    image = torch.rand(1, 100, 150, 3, generator=torch.Generator().manual_seed(1))
    (bucket,) = photos_of(run_node, images=[image])[1]
    (centre,) = photos_of(run_node, images=[image], fit="centre crop")[1]
    assert bucket.shape == (1, 48, 80, 3) and centre.shape == (1, 64, 64, 3)
    assert float((centre - torch.nn.functional.interpolate(
        image[:, :, 25:125].movedim(-1, 1), size=(64, 64), mode="area").movedim(1, -1)).abs().mean()) < 0.1  # fmt: skip
    photos, crops = photos_of(run_node, images=[image], fit="random crop", crops=3, seed=4)
    again = photos_of(run_node, images=[image], fit="random crop", crops=3, seed=4)[1]
    other = photos_of(run_node, images=[image], fit="random crop", crops=3, seed=5)[1]
    assert len(crops) == 3 and all(torch.equal(a, b) for a, b in zip(crops, again, strict=True))
    assert not torch.equal(crops[0], crops[1]) and not torch.equal(crops[0], other[0])
    mask = torch.zeros(1, 100, 150)
    mask[..., :75] = 1
    photos, pair = photos_of(run_node, images=[image], masks=[mask], flips=True)
    assert torch.equal(pair[1], pair[0].flip(2)) and torch.equal(photos.masks[1], photos.masks[0].flip(2))
    assert photos.masks[0][0, :, 0].mean() == 1 and photos.masks[0][0, :, -1].mean() == 0


def test_lists_of_images_masks_and_texts(run_node):
    images = [torch.rand(2, 64, 64, 3), torch.rand(1, 64, 128, 3)]
    photos, _ = photos_of(run_node, images=images, texts=["one", "", "three {}"])
    assert photos.captions == ["{}, one", None, "three {}"] and len({latent.shape for latent in photos.latents}) == 2
    for name, given in (("texts", ["a", "b"]), ("masks", [torch.ones(2, 64, 64)])):
        with pytest.raises(ValueError, match=f"got 3 images and 2 {name}: give one each, or one"):
            photos_of(run_node, images=images, **{name: given})
    with pytest.raises(ValueError, match="The mask of photo 1 is black"):
        photos_of(run_node, images=images, masks=[torch.zeros(1, 64, 64)])
    with pytest.raises(ValueError, match="XTI Photos needs photos"):
        photos_of(run_node)
    with pytest.raises(ValueError, match="stands in 'images', where a IMAGE belongs"):
        photos_of(run_node, images=[5])


@pytest.mark.parametrize("name", ["nothing", "..", "my dog/../..", "my dog/b.png", "empty"])
def test_folders_that_cannot_be(run_node, folder, tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="There is no folder|has no photos"):
        photos_of(run_node, folder=name)


def test_files_that_cannot_be_read(run_node, folder, tmp_path):
    (tmp_path / folder / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="a.txt is not a text in UTF-8"):
        photos_of(run_node, folder=folder)
    (tmp_path / folder / "a.txt").unlink()
    (tmp_path / folder / "c.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="c.png cannot be read as a photo"):
        photos_of(run_node, folder=folder)


def test_the_place_of_the_token():
    assert with_token("SKS dog and skstone", "sks") == "{} dog and skstone"
    assert with_token("a {} with sks", "sks") == "a {} with sks"
    assert with_token("plain (or not)", "") == "{}, plain \\(or not\\)" and with_token(" \n", "x") is None


def test_photos_of_one_size_are_the_latents(model, clip, run_node):
    """And the inputs that were added later change nothing at their defaults."""
    given = latents()["samples"]
    by_latents, _ = train(run_node, model, clip, latents={"samples": given})
    photos = Photos(list(given), [None] * 3, [None] * 3)
    neutral = dict(schedule="constant", warm_up=0, save_every=0, keep_best_every=0, gradient_checkpointing=False)
    for options in (neutral, {**neutral, "preview_prompt": "", "preview_cfg": 1.0}):
        by_photos, _ = train(run_node, model, clip, latents=None, photos=photos, **options)
        assert same(by_latents, by_photos)
    with pytest.raises(ValueError, match="connect either images .with vae., latents or photos"):
        train(run_node, model, clip, photos=photos)


def test_captions_and_sizes_of_photos_reach_the_networks(model, clip, run_node):
    """Each text is read by its own pictures; in one step of all, against one graph over the whole batch."""
    generator = torch.Generator().manual_seed(8)
    shapes = [(4, 16, 32), (4, 16, 16), (4, 16, 16)]
    mask = torch.zeros(1, 16, 16)
    mask[:, :8] = 1
    photos = Photos(
        [torch.randn(s, generator=generator) for s in shapes], [None, mask, None], ["{} left", None, "a {}"]
    )
    learned, _ = train(run_node, model, clip, latents=None, photos=photos, batch=3, steps=1, learning_rate=1e-3)
    texts = ["a photo of a {} on a table", "{} left", "a {}"]
    start, _ = train(run_node, model, clip, steps=1, learning_rate=1e-6)
    from guidance_lab.nodes.layers.learned_tokens import word_rows
    from guidance_lab.nodes.layers.token_training import in_training
    from guidance_lab.xti.pictures import Pictures
    from guidance_lab.xti.training import draw

    with outside_inference(), in_training(model, clip, texts, 1) as network, torch.enable_grad():
        rows = [word_rows(clip, "cat", 1).requires_grad_() for _ in range(16)]
        clean = [model.model.process_latent_in(latent[None]).clone()[0] for latent in photos.latents]
        drawn = draw(0, 0, 1, Pictures(clean, photos.masks, [None] * 3), 1000, 3)
        total = 0
        for place, number in enumerate(drawn.pictures.tolist()):
            context = network.encode({0: 1, 1: 0, 2: 2}[number], rows)
            predicted, scale = network.predict(
                clean[number][None], drawn.noise[place][None], drawn.levels[[place]], context
            )
            own = photos.masks[number]
            total = total + reconstruction_loss(
                predicted, clean[number][None], scale, None if own is None else own[None]
            )
        (total / 3).backward()
    # Adam's first step is the sign of the gradient.
    agree = [
        (torch.sign(learned.layers[name] - word_rows(clip, "cat", 1)) == -torch.sign(row.grad)).float().mean()
        for name, row in zip(learned.layers, rows, strict=True)
    ]
    assert min(agree) > 0.9 and not same(learned, start)


def test_checkpoints_are_what_a_shorter_run_gives(model, clip, run_node, output):
    train(run_node, model, clip, steps=5, save_every=2)
    names = sorted(path.name for path in (output / "xti").iterdir())
    assert [name[:7] for name in names] == ["step_2_", "step_4_"]
    kept = xti.load(output / "xti" / names[0])
    assert kept.metadata["steps"] == "2" and same(kept, train(run_node, model, clip, steps=2)[0])
    again, _ = train(run_node, model, clip, steps=3, resume=kept)
    assert same(again, train(run_node, model, clip, steps=5)[0])


def test_the_best_is_kept(model, clip, run_node):
    """A learning rate that grows too large: the result is the token before that, and it goes on from there."""
    options = dict(learning_rate=0.5, batch=2, latents=latents(2))
    shorter = [train(run_node, model, clip, steps=steps, **options)[0] for steps in (1, 2, 3, 4)]
    best, _ = train(run_node, model, clip, steps=4, keep_best_every=1, **options)
    losses = []
    for each in shorter:
        with outside_inference(), opened(model, clip) as network:
            from guidance_lab.xti.training import Recipe, Trainer

            clean = model.model.process_latent_in(latents(2)["samples"])
            learner = Trainer(list(each.layers.values()), Recipe(), [])
            losses.append(learner.validate(clean, len(network.sigmas), network.encode, network.predict))
    expected = losses.index(min(losses))
    assert best.metadata["steps"] == str(expected + 1) and same(best, shorter[expected])
    held = Photos([3 * torch.ones(4, 8, 8)], [None], ["a {}"])
    other, _ = train(run_node, model, clip, steps=4, keep_best_every=4, validation=held, **options)
    assert same(other, shorter[-1])


def test_a_schedule_counts_over_resumed_runs(model, clip, run_node):
    """Warm-up and constant are the same in two runs as in one; a step's length is the schedule's."""
    whole, _ = train(run_node, model, clip, steps=3, warm_up=4)
    first, _ = train(run_node, model, clip, steps=1, warm_up=4)
    assert same(whole, train(run_node, model, clip, steps=2, warm_up=4, resume=first)[0])
    start, _ = train(run_node, model, clip, steps=1, learning_rate=1e-6)
    moved = max((first.layers[name] - start.layers[name]).abs().max().item() for name in first.layers)
    assert moved == pytest.approx(5e-3 * rate_factor("constant", 0, 1, 4), rel=1e-2)
    assert not same(
        train(run_node, model, clip, steps=3, schedule="cosine")[0], train(run_node, model, clip, steps=3)[0]
    )
    with pytest.raises(ValueError, match="A cosine schedule needs steps after its warm-up: 4 of 3 are warm-up"):
        train(run_node, model, clip, steps=3, schedule="cosine", warm_up=4)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_gradient_checkpointing_is_the_same_with_less_kept(family, model, clip, run_node):
    """Bit for bit on the CPU; and the bytes that autograd keeps for the backward pass."""
    if family == "sdxl":
        model, clip = tools.sdxl(), tools.sdxl_clip()
    modules = [(type(module), id(module)) for module in model.model.diffusion_model.modules()]
    kept, results = [], []
    weights = {weight.untyped_storage().data_ptr() for weight in model.model.parameters()}
    for checkpointing in (False, True):
        storages = {}

        def pack(tensor, storages=storages):
            if tensor.untyped_storage().data_ptr() not in weights:
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), outside_inference():
            from guidance_lab.nodes.layers.token_training import in_training

            with in_training(model, clip, ["a {}"], 1, checkpointing) as network, torch.enable_grad():
                count = len(network.layer_at)
                width = sum(network.widths.values())
                rows = [torch.full((1, width), 0.1, requires_grad=True) for _ in range(count)]
                contexts = network.encode(0, rows)
                storages.clear()
                noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
                out, _ = network.predict(noise, noise, torch.tensor([500]), contexts)
                kept.append(sum(storages.values()))
                out.square().mean().backward()
        results.append(torch.cat([row.grad for row in rows]))
    assert torch.equal(*results) and results[0].abs().max() > 0
    assert kept[1] < 0.5 * kept[0]
    assert modules == [(type(module), id(module)) for module in model.model.diffusion_model.modules()]
    for given in ({}, {"gradient_checkpointing": True}):
        results.append(train(run_node, model, clip, steps=2, **given)[0])
    assert same(*results[2:])


def test_sdxl_learns_both_towers_from_photos(run_node):
    model, clip = tools.sdxl(), tools.sdxl_clip()
    photos = Photos([torch.randn(4, 8, 12), torch.randn(4, 8, 8)], [None, torch.ones(1, 8, 8)], ["a {} here", None])
    learned, _ = train(
        run_node, model, clip, latents=None, photos=photos, steps=2, batch=2, keep_best_every=1, schedule="linear",
        gradient_checkpointing=True, preview_every=1, preview_prompt="the {}", preview_cfg=3.0,
    )  # fmt: skip
    start, _ = train(run_node, model, clip, steps=1, learning_rate=1e-6)
    assert learned.encoders == {"clip_l": 8, "clip_g": 16}
    for tower in learned.encoders:
        moved = [(learned.of_encoder(tower)[n] - start.of_encoder(tower)[n]).abs().min() for n in learned.layers]
        assert min(moved) > 1e-4


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_previews_with_cfg_are_what_the_sampler_draws(family, model, clip, run_node):
    """The guided preview against ComfyUI's own sampling of XTI Prompt's conditioning."""
    if family == "sdxl":
        model, clip = tools.sdxl(), tools.sdxl_clip()
    learned, _ = train(run_node, model, clip, steps=2, learning_rate=0.1)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with outside_inference(), opened(model, clip) as network:
        drawn = network.sample(0, list(learned.layers.values()), noise, 4.0)
        plain = network.sample(0, list(learned.layers.values()), noise)
    guided, positive = run_node(
        "GuidanceLab_XTIPrompt", model=model, clip=clip, text="a photo of a xti:A on a table", tokens="",
        xtis={"A": learned},
    )[:2]  # fmt: skip
    with torch.inference_mode():
        negative = clip.encode_from_tokens_scheduled(clip.tokenize(""))
        import comfy.sample
        import comfy.samplers

        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "karras", 12)
        sampler = comfy.samplers.sampler_object("dpmpp_2m")
        stock = comfy.sample.sample_custom(
            guided, noise, 4.0, sampler, sigmas, positive, negative, torch.zeros_like(noise), disable_pbar=True
        )
    # The sampler scales its first noise by sqrt(1 + sigma^2), this preview by sigma.
    assert torch.allclose(drawn, stock, atol=0.05 * stock.std()) and not torch.allclose(plain, stock, atol=0.1)
