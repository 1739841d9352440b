"""Cross-modal guidance: gradients, their exactness on a Gaussian, the size of the shift, and everything that must leave
it out.
"""

import pytest
import torch
from reference.frames import denoised_shift, vp
from unit.gaussian import FRAMES, world

from guidance_lab.guidance import cross_modal, frames
from guidance_lab.guidance.cross_modal import blend, model_gradient, sample_gradient, shift, x0_gradient

SHAPE = (2, 3, 6, 6)


def close(a, b, tolerance=1e-12):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def randn(generator, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=generator, dtype=dtype)


@pytest.fixture
def image(generator):
    """x, a denoiser that mixes pixels non-linearly, and a score that does too; float64."""
    x, kernel, target = randn(generator, *SHAPE), randn(generator, 3, 3, 3, 3) / 5, randn(generator, *SHAPE[1:])

    def denoiser(x):
        return torch.nn.functional.conv2d(x, kernel, padding=1).tanh() + 0.3 * x

    def score(image):
        return torch.cosine_similarity((image + 0.1 * image**2).flatten(1), target.flatten()[None], dim=1)

    return x, denoiser, score


def linear(direction):
    return lambda image: image.flatten(1) @ direction


@pytest.mark.parametrize("frame", FRAMES)
def test_through_the_model_tilts_a_gaussian_exactly(frame, generator):
    data, direction, x = world(generator)
    level = FRAMES[frame](x)
    gradient = model_gradient([linear(direction)], lambda x: data.denoise(x, level), x, level, blended=False)
    guided = gradient.denoised + shift(gradient, level, 0.7, size="exact")
    close(guided, data.tilted(0.7 * direction).denoise(x, level))
    close(gradient.denoised, data.denoise(x, level))


@pytest.mark.parametrize("frame", FRAMES)
def test_x0_only_moves_the_estimate_by_the_reward_direction(frame, generator):
    """No covariance and no power of sigma: D + eta*u, which is not the tilted target."""
    data, direction, x = world(generator)
    level = FRAMES[frame](x)
    denoised = data.denoise(x, level)
    gradient = x0_gradient([linear(direction)], x, denoised, level, blended=False)
    moved = shift(gradient, level, 0.7, size="exact")
    close(moved, (0.7 * direction).expand_as(moved))
    assert (denoised + moved - data.tilted(0.7 * direction).denoise(x, level)).abs().max() > 0.05


def test_a_quadratic_reward_gets_the_point_estimate_not_the_posterior(generator):
    """S = -|x0 - y|^2/2: DPS differentiates S(E[x0|x]); the exact guide is grad log E[exp S | x], another closed
    form.
    """
    data, y, x = world(generator)
    level = frames.ve(1.7, x)
    denoised, cov = data.denoise(x, level), data.posterior_covariance(level)
    gradient = model_gradient(
        [lambda d: -((d - y) ** 2).sum(1) / 2], lambda x: data.denoise(x, level), x, level, blended=False
    )
    moved = shift(gradient, level, 1.0, size="exact")
    close(moved, (y - denoised) @ cov)
    posterior = (y - denoised) @ (cov @ torch.linalg.inv(cov + torch.eye(len(y)).double())).T
    assert (moved - posterior).abs().max() > 0.05


@pytest.mark.parametrize("blended", [True, False])
@pytest.mark.parametrize("frame", FRAMES)
def test_gradients_agree_with_finite_differences(frame, blended, image, generator):
    x, denoiser, score = image
    level = FRAMES[frame](x)
    through = model_gradient([score], denoiser, x, level, blended=blended)
    estimate = x0_gradient([score], x, denoiser(x), level, blended=blended)

    def seen(x, denoised):
        return score(blend(x, denoised, level) if blended else denoised)

    def slope(f):
        return (f(step) - f(-step)) / 2e-6

    for _ in range(3):
        direction = randn(generator, *SHAPE)
        step = 1e-6 * direction
        close((through.value * direction).flatten(1).sum(1), slope(lambda d: seen(x + d, denoiser(x + d))), 1e-7)
        close((estimate.value * direction).flatten(1).sum(1), slope(lambda d: seen(x, denoiser(x) + d)), 1e-7)
    close(through.score, seen(x, denoiser(x)))
    close(estimate.score, seen(x, denoiser(x)))


def test_blend_is_the_vp_formula_in_every_frame(generator):
    """diffusers' and PaddleNLP's fac = sqrt(1 - abar); x_in = x0*fac + x_t*(1 - fac), for the same sample in three
    frames.
    """
    x0, noise = randn(generator, 2, *SHAPE)
    abar = 0.27
    x_t = abar**0.5 * x0 + (1 - abar) ** 0.5 * noise
    fac = (1 - abar) ** 0.5
    expected = x0 * fac + x_t * (1 - fac)
    sigma = ((1 - abar) / abar) ** 0.5
    close(blend(x_t, x0, vp(abar, x0)), expected)
    close(blend(x0 + sigma * noise, x0, frames.ve(sigma, x0)), expected)
    t = sigma / (1 + sigma)
    close(blend((1 - t) * x0 + t * noise, x0, frames.flow(t, x0)), expected)


@pytest.mark.parametrize("blended", [True, False])
@pytest.mark.parametrize("wrt", ["x0", "through"])
@pytest.mark.parametrize("size", ["rms", "clamp", "exact"])
def test_the_score_rises_with_positive_strength_and_falls_with_negative(wrt, blended, size, image):
    x, denoiser, score = image
    level = frames.ve(0.8, x)
    if wrt == "x0":
        gradient = x0_gradient([score], x, denoiser(x), level, blended=blended)
    else:
        gradient = model_gradient([score], denoiser, x, level, blended=blended)
    step = shift(gradient, level, 0.02, size=size)
    assert (score(gradient.denoised + step) > score(gradient.denoised)).all()
    assert (score(gradient.denoised + shift(gradient, level, -0.02, size=size)) < score(gradient.denoised)).all()


@pytest.mark.parametrize("wrt", ["x0", "through"])
def test_rms_strength_is_the_size_of_the_shift(wrt, image):
    """RMS(shift) = strength*(1 - abar)/sqrt(abar), so that eps moves by strength*sqrt(1 - abar); nothing the score is
    scaled by matters.
    """
    x, denoiser, score = image
    for frame, level in {"VE": frames.ve(2.0, x), "flow": frames.flow(2 / 3, x), "VP": vp(0.2, x)}.items():
        for scale in (1.0, 1e-30, 1e20):
            terms = [lambda image, scale=scale: scale * score(image)]
            if wrt == "x0":
                gradient = x0_gradient(terms, x, denoiser(x), level)
            else:
                gradient = model_gradient(terms, denoiser, x, level)
            size = shift(gradient, level, 0.5).square().mean((1, 2, 3)).sqrt()
            close(size, torch.full_like(size, 0.5 * 0.8 / 0.2**0.5), 1e-6)
            assert frame


def test_the_root_mean_square_survives_numbers_whose_squares_do_not():
    for scale in (1e-30, 1.0, 1e30):
        g = scale * torch.tensor([[3.0, -4.0]])
        torch.testing.assert_close(cross_modal.masked_rms(g), torch.full((1, 1), scale * 12.5**0.5), rtol=1e-6, atol=0)


def test_clamp_cuts_large_gradients_and_leaves_small_ones(image):
    x, denoiser, score = image
    level = vp(0.3, x)
    plain = model_gradient([score], denoiser, x, level)
    rms = cross_modal.masked_rms(plain.value)
    close(shift(plain, level, 3.0, size="clamp", limit=1e9), 3.0 * denoised_shift(plain.value, level))
    limit = rms.min().item() / 4
    clamped = shift(plain, level, 3.0, size="clamp", limit=limit)
    close(clamped, 3.0 * denoised_shift(plain.value * limit / rms, level))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
@pytest.mark.parametrize("size", ["rms", "clamp", "exact"])
def test_a_sample_with_a_useless_gradient_gets_no_shift_and_spoils_no_other(bad, size, image):
    x, denoiser, score = image
    level = frames.ve(0.8, x)
    good = x0_gradient([score], x, denoiser(x), level)
    value = good.value.clone()
    value[0] = value[0] * bad
    moved = shift(good._replace(value=value), level, 0.5, size=size)
    assert torch.equal(moved[0], torch.zeros_like(moved[0]))
    assert torch.equal(moved[1], shift(good, level, 0.5, size=size)[1])


def test_flow_at_sigma_one_gets_no_shift_unless_the_next_level_caps_it(image):
    x, denoiser, score = image
    level = frames.flow(1.0, x)
    gradient = model_gradient([score], denoiser, x, level)
    assert not shift(gradient, level, 0.5).any()
    capped = shift(gradient, level, 0.5, next_level=frames.flow(0.9, x))
    size = capped.square().mean((1, 2, 3)).sqrt()
    close(size, torch.full_like(size, 0.5 * (0.1**2 + 0.9**2) ** 0.5 / 0.1), 1e-9)


def test_zero_strength_shifts_by_exactly_zero(image):
    x, denoiser, score = image
    level = frames.ve(0.8, x)
    gradient = x0_gradient([score], x, denoiser(x), level)
    for size in ("rms", "clamp", "exact"):
        assert torch.equal(gradient.denoised + shift(gradient, level, 0.0, size=size), gradient.denoised)


def test_nothing_moves_outside_the_mask_and_the_size_is_taken_inside(image):
    x, denoiser, score = image
    level = vp(0.2, x)
    mask = torch.zeros(1, 1, *SHAPE[2:])
    mask[..., :2, 1:] = 1
    inside = mask.bool().expand(SHAPE)
    moved = shift(x0_gradient([score], x, denoiser(x), level), level, 0.5, mask=mask)
    assert torch.equal(moved[~inside], torch.zeros_like(moved[~inside]))
    size = moved[inside].reshape(2, -1).square().mean(1).sqrt()
    close(size, torch.full_like(size, 0.5 * 0.8 / 0.2**0.5), 1e-6)
    assert not shift(x0_gradient([score], x, denoiser(x), level), level, 0.5, mask=torch.zeros_like(mask)).any()


def test_a_batch_is_so_many_singles(image):
    x, denoiser, score = image
    sigma = torch.tensor([0.8, 2.0])
    both = shift(model_gradient([score], denoiser, x, frames.ve(sigma, x)), frames.ve(sigma, x), 0.5)
    for i in range(2):
        level = frames.ve(sigma[i], x[i : i + 1])
        close(both[i : i + 1], shift(model_gradient([score], denoiser, x[i : i + 1], level), level, 0.5))


def test_accumulating_at_x_in_equals_the_direct_gradient_and_pays_one_model_backward(image):
    x, denoiser, score = image
    level = frames.ve(0.8, x)
    passes = []

    def counted(x):
        result = denoiser(x)
        result.register_hook(lambda g: passes.append(1))
        return result

    terms = [score, lambda image: 2 * score(image.flip(-1)), lambda image: image.square().mean((1, 2, 3))]
    gradient = model_gradient(terms, counted, x, level)
    assert len(passes) == 1
    leaf = x.clone().requires_grad_()
    direct = sum(term(blend(leaf, denoiser(leaf), level)) for term in terms)
    close(gradient.value, torch.autograd.grad(direct.sum(), leaf)[0])
    close(gradient.score, direct.detach())


def test_works_inside_inference_mode_and_hands_back_plain_tensors(image):
    x, denoiser, score = image
    level = frames.ve(0.8, x)
    expected = shift(model_gradient([score], denoiser, x, level), level, 0.5)
    expected_x0 = shift(x0_gradient([score], x, denoiser(x), level), level, 0.5)
    before = torch.random.get_rng_state()
    with torch.inference_mode(), torch.no_grad():
        frozen = x.clone()
        assert frozen.is_inference()
        level = frames.ve(torch.tensor(0.8, dtype=torch.float64), frozen)
        through = model_gradient([score], denoiser, frozen, level)
        estimate = x0_gradient([score], frozen, denoiser(frozen), level)
        close(shift(through, level, 0.5), expected)
        close(shift(estimate, level, 0.5), expected_x0)
        assert torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
    for tensor in (*through[:3], *estimate[:3]):
        assert tensor.grad_fn is None and not tensor.requires_grad
    assert torch.equal(torch.random.get_rng_state(), before)


def test_models_that_write_into_their_activations_are_differentiated_right(image):
    """As ComfyUI's CLIP layers and Flux blocks do (`x += ...`): plain autograd refuses these."""
    x, denoiser, score = image

    def in_place(x):
        h = denoiser(x)
        y = h.square()
        h += 1
        return y + h

    level = frames.ve(0.8, x)
    with pytest.raises(RuntimeError, match="inplace"):
        leaf = x.clone().requires_grad_()
        torch.autograd.grad(score(in_place(leaf)).sum(), leaf)
    with pytest.raises(RuntimeError, match="inplace"):
        model_gradient([score], in_place, x, level, in_place=False)
    got = model_gradient([score], in_place, x, level).value
    close(got, model_gradient([score], lambda x: denoiser(x) ** 2 + denoiser(x) + 1, x, level).value)


@pytest.mark.parametrize("frame", FRAMES)
def test_a_score_of_the_noisy_sample_is_differentiated_at_x_t_in_vp(frame, image):
    """D' = D + b^2/a * gamma * dS(x_t)/dx with x_t = x/r: no denoiser, whatever D is."""
    x, _, score = image
    level = FRAMES[frame](x)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(score(leaf / frames.radius(level)).sum(), leaf)
    with torch.inference_mode():
        gradient = sample_gradient([score], x, x + 1, level, in_place=False)
        moved = shift(gradient, level, 0.7, size="exact")
    close(gradient.value, expected)
    close(moved, 0.7 * level.sigma**2 / level.alpha * expected)
    close(gradient.denoised, x + 1)


def test_half_precision_latents_get_a_float32_shift(image):
    x, _, score = image
    level = frames.ve(0.8, x.half())
    term = lambda image: torch.cosine_similarity(image.flatten(1), torch.ones(1, image[0].numel()), dim=1)  # noqa: E731
    moved = shift(x0_gradient([term], x.half(), x.half(), level), level, 0.5)
    assert moved.dtype == torch.float32 and moved.abs().sum() > 0


def test_what_cannot_be_differentiated_is_refused_with_the_reason(image):
    x, denoiser, score = image
    level = frames.ve(0.8, x)
    with pytest.raises(ValueError, match="x0 gradient instead"):
        model_gradient([score], lambda x: denoiser(x).detach(), x, level)
    with pytest.raises(ValueError, match="does not depend on the image"):
        x0_gradient([lambda image: score(image).detach()], x, x, level)
    with pytest.raises(ValueError, match="one score for each image"):
        x0_gradient([lambda image: score(image).sum()], x, x, level)
    with pytest.raises(ValueError, match="no objective"):
        x0_gradient([], x, x, level)
    with pytest.raises(ValueError, match="Unknown size rule"):
        shift(x0_gradient([score], x, x, level), level, 0.5, size="big")
