"""GALIP Sampler: exactly the generator's pictures, one seed per picture, and what it refuses."""

import comfy.model_management
import nodes as comfy_nodes
import pytest
import tiny_galip
import torch

from guidance_lab.galip import load_generator, seeded_noise
from guidance_lab.nodes.galip import Galip

ID = "GuidanceLab_GALIPSampler"
DIMS = tiny_galip.DIMS


@pytest.fixture
def galip() -> Galip:
    return Galip(load_generator(tiny_galip.generator_weights(), sizes=DIMS.sizes), "tiny.pth")


@pytest.fixture
def text():
    """`text(seed, texts=1, **more)` → CONDITIONING with a pooled output of the right width."""

    def make(seed: int = 0, texts: int = 1, **more):
        pooled = torch.randn(texts, DIMS.cond_dim, generator=torch.Generator().manual_seed(seed))
        return [[torch.zeros(texts, 77, 64), {"pooled_output": pooled, **more}]]

    return make


def test_it_is_the_generator_on_seeded_noise(galip, text, run_node):
    image, noise = run_node(ID, galip=galip, conditioning=text(), seed=5)
    vector = torch.randn(DIMS.nz, generator=torch.Generator().manual_seed(5))
    assert torch.equal(noise["samples"], vector[None, :, None, None])
    with torch.no_grad():
        raw = galip.generator(vector[None], text()[0][1]["pooled_output"])
    assert torch.equal(image, (raw.clamp(-1, 1) + 1).div(2).movedim(1, -1))


def test_every_picture_of_a_batch_can_be_drawn_alone(galip, text, run_node):
    batch, noise = run_node(ID, galip=galip, conditioning=text(), seed=2**64 - 2, batch_size=3, truncation=0.8)
    assert batch.shape == (3, 32, 32, 3) and noise["samples"].shape == (3, DIMS.nz, 1, 1)
    for index, seed in enumerate((2**64 - 2, 2**64 - 1, 0)):  # seeds wrap around at the end of their range
        assert torch.equal(
            run_node(ID, galip=galip, conditioning=text(), seed=seed, truncation=0.8)[0][0], batch[index]
        )
    assert not torch.equal(batch[0], batch[1])


def test_three_runs_are_the_same_and_the_random_state_is_not_touched(galip, text, run_node):
    before = torch.get_rng_state()
    first, *others = [
        run_node(ID, galip=galip, conditioning=text(), seed=1, batch_size=2, truncation=0.5) for _ in range(3)
    ]
    comfy.model_management.unload_all_models()
    others.append(run_node(ID, galip=galip, conditioning=text(), seed=1, batch_size=2, truncation=0.5))
    assert all(
        torch.equal(image, first[0]) and torch.equal(noise["samples"], first[1]["samples"]) for image, noise in others
    )
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_takes_the_place_of_seed_batch_size_and_truncation(galip, text, run_node):
    image, noise = run_node(ID, galip=galip, conditioning=text(), seed=3, batch_size=4)
    again, same = run_node(ID, galip=galip, conditioning=text(), seed=9, batch_size=1, truncation=0.1, noise=noise)
    assert torch.equal(again, image) and torch.equal(same["samples"], noise["samples"])
    (second,) = comfy_nodes.LatentFromBatch().frombatch(noise, 1, 2)
    assert torch.equal(run_node(ID, galip=galip, conditioning=text(), noise=second)[0], image[1:3])
    other = run_node(ID, galip=galip, conditioning=text(7), noise=noise)[0]
    assert not torch.equal(other, image)


def test_truncation(galip, text, run_node):
    noise = run_node(ID, galip=galip, conditioning=text(), batch_size=50, truncation=0.7)[1]["samples"]
    assert 1 < noise.abs().max() <= 1.4
    assert torch.equal(noise.flatten(1), seeded_noise(list(range(50)), DIMS.nz, 0.7))
    same, _ = run_node(ID, galip=galip, conditioning=text(), batch_size=2, truncation=0.0)
    assert torch.equal(same[0], same[1])


def test_a_batch_of_texts_gives_one_picture_each(galip, text, run_node):
    both = text(0, texts=2)
    image, noise = run_node(ID, galip=galip, conditioning=both, batch_size=2)
    for index in (0, 1):
        one = [[both[0][0][:1], {"pooled_output": both[0][1]["pooled_output"][index : index + 1]}]]
        assert torch.equal(run_node(ID, galip=galip, conditioning=one, seed=index)[0][0], image[index])
    with pytest.raises(ValueError, match="2 texts for 3 pictures"):
        run_node(ID, galip=galip, conditioning=both, batch_size=3)


def test_other_entries_of_the_conditioning_are_left_alone(galip, text, run_node):
    conditioning = text(0, guidance=3.5)
    pooled = conditioning[0][1]["pooled_output"].clone()
    assert torch.equal(
        run_node(ID, galip=galip, conditioning=conditioning)[0], run_node(ID, galip=galip, conditioning=text())[0]
    )
    assert torch.equal(conditioning[0][1]["pooled_output"], pooled) and conditioning[0][1]["guidance"] == 3.5


REFUSED = {
    "no pooled output": ({"pooled_output": None}, "no pooled output.*GALIP CLIP"),
    "another CLIP": ({"pooled_output": torch.zeros(1, 768)}, r"shape \[1, 768\].*\[texts, 64\].*GALIP CLIP"),
    "token embeddings": ({"pooled_output": torch.zeros(1, 64, 64)}, r"shape \[1, 64, 64\]"),
    "image embeddings": ({"unclip_conditioning": [{}]}, "image embeddings, which only give white pictures"),
    "area": ({"area": (8, 8, 0, 0)}, "an area"),
    "mask": ({"mask": torch.ones(1, 8, 8)}, "a mask"),
    "ControlNet": ({"control": object()}, "a ControlNet"),
    "timesteps": ({"start_percent": 0.0, "end_percent": 0.5}, "a timestep range"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_conditionings_that_galip_cannot_draw_are_refused(galip, text, run_node, kind):
    change, words = REFUSED[kind]
    with pytest.raises(ValueError, match=words) as caught:
        run_node(ID, galip=galip, conditioning=text(0, **change))
    assert "\n" not in str(caught.value)


def test_stock_nodes_make_conditionings_that_are_refused(galip, text, run_node):
    combined = comfy_nodes.ConditioningCombine().combine(text(0), text(1))[0]
    with pytest.raises(ValueError, match="the conditioning has 2 parts"):
        run_node(ID, galip=galip, conditioning=combined)
    area = comfy_nodes.ConditioningSetArea().append(text(0), 64, 64, 0, 0, 1.0)[0]
    with pytest.raises(ValueError, match="an area"):
        run_node(ID, galip=galip, conditioning=area)
    zero = comfy_nodes.ConditioningZeroOut().zero_out(text(0))[0]
    assert run_node(ID, galip=galip, conditioning=zero)[0].shape == (1, 32, 32, 3)


@pytest.mark.parametrize("inputs, words", [
    ({"batch_size": 0}, "batch_size is 0"), ({"truncation": 1.5}, "truncation is 1.5.*0 to 1"),
    ({"noise": {"samples": torch.zeros(1, 4, 8, 8)}}, r"noise has shape \[1, 4, 8, 8\].*not the latent of a picture"),
    ({"noise": {"samples": torch.zeros(1, 12, 8, 8)}}, r"noise has shape \[1, 12, 8, 8\]"),
    ({"noise": {"samples": torch.zeros(1, 13, 1, 1)}}, r"\[1, 13, 1, 1\].*\[pictures, 12, 1, 1\]"),
    ({"noise": {"samples": torch.zeros(0, 12, 1, 1)}}, "at least one"),
])  # fmt: skip
def test_wrong_inputs_are_refused(galip, text, run_node, inputs, words):
    with pytest.raises(ValueError, match=words):
        run_node(ID, galip=galip, conditioning=text(), **inputs)


def test_the_server_checks_the_range_of_the_widgets(pack_nodes):
    inputs = pack_nodes[ID].GET_NODE_INFO_V1()["input"]["required"]
    assert inputs["batch_size"][1]["min"] == 1
    assert (inputs["truncation"][1]["min"], inputs["truncation"][1]["max"]) == (0, 1)


def test_an_interrupt_ends_the_batch_between_two_pictures(galip, text, run_node):
    drawn = []

    def interrupt_after_two(module, args, output):
        drawn.append(len(output))
        if len(drawn) == 2:
            comfy.model_management.interrupt_current_processing()

    hook = galip.generator.to_rgb.register_forward_hook(interrupt_after_two)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run_node(ID, galip=galip, conditioning=text(), batch_size=10)
    hook.remove()
    assert drawn == [1, 1]
    assert run_node(ID, galip=galip, conditioning=text(), batch_size=3)[0].shape[0] == 3


def test_progress_is_told_picture_by_picture(galip, text, run_node, monkeypatch):
    told = []
    monkeypatch.setattr("comfy.utils.PROGRESS_BAR_HOOK", lambda value, total, *_, **__: told.append((value, total)))
    monkeypatch.setattr("comfy.utils.PROGRESS_THROTTLE_MIN_INTERVAL", 0)
    run_node(ID, galip=galip, conditioning=text(), batch_size=3)
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_diffusion_is_the_same_after_galip(galip, text, run_node, tiny_model, cond, latent, sample):
    before = sample(tiny_model, cond(0), cond(1), latent())
    run_node(ID, galip=galip, conditioning=text())
    with pytest.raises(ValueError):
        run_node(ID, galip=galip, conditioning=text(), batch_size=0)
    assert torch.equal(sample(tiny_model, cond(0), cond(1), latent()), before)
