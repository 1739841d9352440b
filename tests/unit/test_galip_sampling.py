"""Noise from seeds, truncation and the ways between points."""

import math

import pytest
import torch

from guidance_lab.galip.sampling import lerp, seeded_noise, slerp, walk


def test_a_row_depends_on_its_seed_alone():
    rows = seeded_noise([7, 8, 9], 100)
    assert rows.shape == (3, 100) and rows.dtype == torch.float32
    assert torch.equal(rows[1], seeded_noise([8], 100)[0])
    assert torch.equal(rows[1], torch.randn(100, generator=torch.Generator().manual_seed(8)))
    assert not torch.equal(rows[0], rows[1])
    assert torch.equal(seeded_noise([2**64 - 1], 4), seeded_noise([2**64 - 1], 4))


@pytest.mark.parametrize("truncation", [1.0, 0.5])
def test_the_global_random_state_is_not_used(truncation):
    before = torch.get_rng_state()
    first = seeded_noise([1], 1000, truncation)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    assert torch.equal(seeded_noise([1], 1000, truncation), first)


def test_truncated_noise_is_a_truncated_normal():
    """Inside +-2 the values are those of the plain noise, times the rate; the variance is that of the normal cut at
    +-2.
    """
    plain, cut = seeded_noise([3], 200_000)[0], seeded_noise([3], 200_000, 0.88)[0]
    inside = plain.abs() <= 2
    assert torch.equal(cut[inside], plain[inside] * 0.88)
    assert cut.abs().max() <= 2 * 0.88
    density = math.exp(-2) / math.sqrt(2 * math.pi)
    variance = 1 - 4 * density / math.erf(2 / math.sqrt(2))
    assert float(cut.var()) == pytest.approx(0.88**2 * variance, rel=0.01)
    assert (cut[~inside].abs() > 0).all() and float(cut[~inside].mean()) == pytest.approx(0, abs=0.05)


def test_no_truncation_and_full_truncation():
    assert seeded_noise([3], 10_000).abs().max() > 3
    assert not seeded_noise([3, 4], 100, 0.0).any()


@pytest.mark.parametrize("truncation", [-0.1, 1.5, math.nan])
def test_truncation_outside_its_range_is_refused(truncation):
    with pytest.raises(ValueError, match="truncation is .*0 to 1"):
        seeded_noise([1], 4, truncation)


def test_lerp():
    a, b = torch.tensor([0.0, 2.0]), torch.tensor([4.0, 0.0])
    assert torch.equal(lerp(a, b, 0.25), torch.tensor([1.0, 1.5]))


def test_slerp_turns_by_equal_angles_and_keeps_the_norm(generator):
    a = torch.randn(100, generator=generator)
    b = torch.randn(100, generator=generator)
    b *= a.norm() / b.norm()
    angle = float(torch.arccos(torch.dot(a, b) / a.norm() ** 2))
    for t in (0.25, 0.5, 0.75):
        point = slerp(a, b, t)
        assert float(point.norm()) == pytest.approx(float(a.norm()), rel=1e-5)
        assert float(torch.arccos(torch.dot(a, point) / a.norm() ** 2)) == pytest.approx(t * angle, rel=1e-4)
    assert lerp(a, b, 0.5).norm() < 0.9 * a.norm()


@pytest.mark.parametrize("b", [[2.0, 0.0], [-1.0, 0.0], [0.0, 0.0]], ids=["parallel", "opposite", "zero"])
def test_slerp_without_an_angle_is_lerp(b):
    a = torch.tensor([1.0, 0.0])
    assert torch.equal(slerp(a, torch.tensor(b), 0.25), lerp(a, torch.tensor(b), 0.25))
    assert torch.equal(slerp(torch.tensor(b), a, 0.25), lerp(torch.tensor(b), a, 0.25))


@pytest.mark.parametrize("kind, between", [("lerp", lerp), ("slerp", slerp)])
def test_a_walk_visits_every_key(generator, kind, between):
    keys = torch.randn(3, 10, generator=generator)
    way = walk(keys, 4, kind)
    assert way.shape == (9, 10)
    assert torch.equal(way[::4], keys)
    assert torch.equal(way[5], between(keys[1], keys[2], 0.25))


def test_a_loop_comes_back(generator):
    keys = torch.randn(3, 10, generator=generator)
    way = walk(keys, 4, "lerp", loop=True)
    assert way.shape == (12, 10)
    assert torch.equal(way[::4], keys)
    assert torch.equal(way[11], lerp(keys[2], keys[0], 0.75))


def test_one_key_stays_where_it_is(generator):
    key = torch.randn(1, 10, generator=generator)
    assert torch.equal(walk(key, 4, "slerp"), key)
    assert torch.equal(walk(key, 1, "slerp", loop=True), key)
    with pytest.raises(ValueError, match="steps is 0"):
        walk(key, 0, "lerp")
