"""GALIP Interpolate: the ends are the sampler's pictures, and the ways between are the right ones."""

import comfy.model_management
import pytest
import tiny_galip
import torch

from guidance_lab.galip import lerp, load_generator, seeded_noise, slerp
from guidance_lab.nodes.galip import Galip

ID, SAMPLER = "GuidanceLab_GALIPInterpolate", "GuidanceLab_GALIPSampler"
DIMS = tiny_galip.DIMS


@pytest.fixture(scope="module")
def galip() -> Galip:
    return Galip(load_generator(tiny_galip.generator_weights(), sizes=DIMS.sizes), "tiny.pth")


def pooled(seed: int) -> torch.Tensor:
    return torch.randn(1, DIMS.cond_dim, generator=torch.Generator().manual_seed(seed))


def texts(*seeds: int) -> dict:
    """The value of the growing input: one CONDITIONING per seed."""
    return {
        f"conditioning{index}": [[torch.zeros(1, 77, 64), {"pooled_output": pooled(seed)}]]
        for index, seed in enumerate(seeds)
    }


@pytest.fixture
def plain(galip, run_node):
    """`plain(text, seed)` → the sampler's picture [H, W, 3]."""

    def draw(text: int, seed: int, **options):
        return run_node(SAMPLER, galip=galip, conditioning=texts(text)["conditioning0"], seed=seed, **options)[0][0]

    return draw


@pytest.mark.parametrize("paths", [("lerp", "slerp"), ("slerp", "lerp")])
def test_a_row_ends_in_plain_samples_bit_for_bit(galip, run_node, plain, paths):
    images, sheet = run_node(
        ID,
        galip=galip,
        conditionings=texts(1, 2, 3),
        seeds="10, 11,12",
        steps=3,
        text_path=paths[0],
        noise_path=paths[1],
        truncation=0.9,
    )
    assert images.shape == (7, 32, 32, 3)
    for key, (text, seed) in enumerate(((1, 10), (2, 11), (3, 12))):
        assert torch.equal(images[3 * key], plain(text, seed, truncation=0.9))
    assert torch.equal(sheet[0], torch.cat(list(images), dim=1))


@pytest.mark.parametrize("text_path, noise_path", [("lerp", "slerp"), ("slerp", "lerp")])
def test_between_the_keys_text_and_noise_move_on_their_paths(galip, run_node, text_path, noise_path):
    paths = {"lerp": lerp, "slerp": slerp}
    images, _ = run_node(
        ID, galip=galip, conditionings=texts(1, 2), seeds="10 11", steps=4, text_path=text_path, noise_path=noise_path
    )
    first, second = seeded_noise([10, 11], DIMS.nz)
    noise, sentence = paths[noise_path](first, second, 0.25), paths[text_path](pooled(1)[0], pooled(2)[0], 0.25)
    assert torch.equal(images[1], galip.draw(noise[None], sentence[None])[0])


def test_a_single_text_or_a_single_seed_stays(galip, run_node, plain):
    images, _ = run_node(ID, galip=galip, conditionings=texts(1), seeds="10, 11", steps=2)
    assert torch.equal(images[0], plain(1, 10)) and torch.equal(images[2], plain(1, 11)) and len(images) == 3
    images, _ = run_node(ID, galip=galip, conditionings=texts(1, 2), seeds="10", steps=2)
    assert torch.equal(images[0], plain(1, 10)) and torch.equal(images[2], plain(2, 10)) and len(images) == 3


def test_a_loop_goes_back_without_repeating_the_first_picture(galip, run_node, plain):
    images, _ = run_node(ID, galip=galip, conditionings=texts(1, 2), seeds="10", steps=3, layout="loop")
    assert len(images) == 6
    assert torch.equal(images[0], plain(1, 10)) and torch.equal(images[3], plain(2, 10))
    between = lerp(pooled(2)[0], pooled(1)[0], 2 / 3)
    assert torch.equal(images[5], galip.draw(seeded_noise([10], DIMS.nz), between[None])[0])


def test_a_grid_has_texts_across_and_noises_down(galip, run_node, plain):
    images, sheet = run_node(ID, galip=galip, conditionings=texts(1, 2), seeds="10, 11", steps=2, layout="grid")
    assert images.shape == (9, 32, 32, 3) and sheet.shape == (1, 96, 96, 3)
    corners = {(0, 0): (1, 10), (0, 2): (2, 10), (2, 0): (1, 11), (2, 2): (2, 11)}
    for (row, column), (text, seed) in corners.items():
        assert torch.equal(images[3 * row + column], plain(text, seed))
        assert torch.equal(sheet[0, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32], plain(text, seed))
    middle = galip.draw(slerp(*seeded_noise([10, 11], DIMS.nz), 0.5)[None], lerp(pooled(1), pooled(2), 0.5))[0]
    assert torch.equal(images[4], middle)


def test_noise_and_batches_of_texts_are_keys(galip, run_node, plain):
    noise = run_node(SAMPLER, galip=galip, conditioning=texts(1)["conditioning0"], seed=10, batch_size=2)[1]
    both = [[torch.zeros(2, 77, 64), {"pooled_output": torch.cat((pooled(1), pooled(2)))}]]
    images, _ = run_node(
        ID, galip=galip, conditionings={"conditioning0": both}, noise=noise, seeds="nonsense", steps=1, truncation=0.2
    )
    assert len(images) == 2
    assert torch.equal(images[0], plain(1, 10)) and torch.equal(images[1], plain(2, 11))


def test_three_runs_are_the_same_and_the_random_state_is_not_touched(galip, run_node):
    before = torch.get_rng_state()
    runs = [
        run_node(ID, galip=galip, conditionings=texts(1, 2), seeds="3,4", steps=2, truncation=0.5)[0] for _ in range(3)
    ]
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("inputs, words", [
    ({"conditionings": texts(1)}, "one text and one noise"),
    ({"conditionings": {}}, "at least one conditioning"),
    ({"seeds": "0, 1, 2"}, "2 texts and 3 noises cannot move together.*grid"),
    ({"seeds": "0, one"}, "seeds is '0, one'.*0, 1, 2"),
    ({"seeds": ""}, "seeds is ''"),
    ({"seeds": "-1, 2"}, "seeds is '-1, 2'"),
    ({"seeds": str(2**64)}, "seeds is"),
    ({"steps": 0}, "steps is 0"),
    ({"steps": 1024}, "1025 pictures; the node draws at most 1024"),
    ({"conditionings": {**texts(1), "conditioning1": [[torch.zeros(1, 77, 64), {}]]}}, "no pooled output"),
    ({"noise": {"samples": torch.zeros(1, 4, 8, 8)}}, "not the latent of a picture"),
])  # fmt: skip
def test_wrong_inputs_are_refused(galip, run_node, inputs, words):
    with pytest.raises(ValueError, match=words) as caught:
        run_node(ID, **{"galip": galip, "conditionings": texts(1, 2), **inputs})
    assert "\n" not in str(caught.value)


def test_an_interrupt_ends_it_between_two_pictures(galip, run_node):
    drawn = []

    def interrupt_after_two(module, args, output):
        drawn.append(len(output))
        if len(drawn) == 2:
            comfy.model_management.interrupt_current_processing()

    hook = galip.generator.to_rgb.register_forward_hook(interrupt_after_two)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run_node(ID, galip=galip, conditionings=texts(1, 2), steps=8)
    hook.remove()
    assert drawn == [1, 1]
