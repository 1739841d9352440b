"""Crops: inside the image, drawn from their own generator, differentiable, and the same for every sample of the
batch.
"""

import pytest
import torch

from guidance_lab.guidance.crops import Box, crop_generator, cut, random_boxes, view, whole_view


def test_boxes_lie_inside_the_image_and_cover_the_range_of_sides():
    boxes = random_boxes(40, 64, 300, 10, 30, crop_generator(1, 0))
    assert len(boxes) == 300
    assert {box.side for box in boxes} == set(range(10, 31))
    assert all(0 <= box.top <= 40 - box.side and 0 <= box.left <= 64 - box.side for box in boxes)
    assert max(box.top + box.side for box in boxes) == 40 and max(box.left + box.side for box in boxes) == 64
    assert min(box.top for box in boxes) == 0 and min(box.left for box in boxes) == 0


def test_sides_are_cut_to_what_fits():
    assert {(box.top, box.side) for box in random_boxes(8, 20, 5, 28, 28, crop_generator(0, 0))} == {(0, 8)}


def test_an_impossible_range_is_refused():
    for smallest, largest in ((0, 4), (5, 4)):
        with pytest.raises(ValueError, match="Cannot draw"):
            random_boxes(8, 8, 1, smallest, largest, crop_generator(0, 0))


def test_seed_and_step_alone_decide_the_crops_and_the_global_state_is_untouched():
    def draw(seed, step):
        return random_boxes(64, 64, 4, 16, 64, crop_generator(seed, step))

    before = torch.random.get_rng_state()
    first = draw(7, 3)
    torch.manual_seed(99)
    assert draw(7, 3) == first
    torch.random.set_rng_state(before)
    assert draw(7, 3) == first and torch.equal(torch.random.get_rng_state(), before)
    assert len({tuple(draw(seed, step)) for seed in (0, 1, 2**63, 2**64 - 1) for step in range(10)}) == 40


def test_a_view_is_the_crop_resized_and_its_gradient_stays_in_the_crop(generator):
    image = torch.rand(2, 3, 20, 30, generator=generator, dtype=torch.float64, requires_grad=True)
    box = Box(4, 10, 12)
    assert torch.equal(view(image, box, 12), image[:, :, 4:16, 10:22])
    small = view(image, box, 6)
    assert small.shape == (2, 3, 6, 6)
    torch.testing.assert_close(small.mean(), image[:, :, 4:16, 10:22].mean(), rtol=0.02, atol=0)
    (gradient,) = torch.autograd.grad(small.sum(), image)
    inside = torch.zeros_like(image, dtype=torch.bool)
    cut(inside, box)[:] = True
    assert (gradient[inside] != 0).all() and not gradient[~inside].any()


def test_a_ramp_stays_a_ramp():
    """No half-pixel drift: the centre of the crop is the centre of the view."""
    ramp = torch.arange(32.0).expand(1, 1, 32, 32)
    got = view(ramp, Box(0, 0, 32), 8)[0, 0, 0]
    torch.testing.assert_close(got[2:6], torch.arange(8.0)[2:6] * 4 + 1.5, rtol=0, atol=1e-3)


def test_the_whole_view_keeps_the_aspect_ratio_and_centres():
    image = torch.ones(1, 1, 8, 16)
    got = whole_view(image, 16, fill=-1.0)
    assert torch.equal(got[0, 0, 4:12], torch.ones(8, 16))
    assert (got[0, 0, :4] == -1).all() and (got[0, 0, 12:] == -1).all()
    assert whole_view(image, 5).shape == (1, 1, 5, 5)


def test_a_picture_is_squeezed_when_nothing_fills_the_margins(generator):
    image = torch.rand(1, 3, 16, 32, generator=generator)
    squeezed = whole_view(image, 16, None)
    expected = torch.nn.functional.interpolate(image, (16, 16), mode="bicubic", antialias=True)
    assert torch.equal(squeezed, expected) and torch.equal(whole_view(image[..., :16], 16, None), image[..., :16])
    padded = whole_view(image, 32)
    assert torch.equal(padded[:, :, 8:24], image) and not padded[:, :, :8].any()
