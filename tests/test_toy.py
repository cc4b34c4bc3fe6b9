"""Two-dimensional data: shapes, seeds, and scales that come from integrals and not from the draw."""

import math

import pytest
import torch

from tinydiff.datasets import (
    checkerboard,
    gaussian_grid,
    gaussian_ring,
    grid_means,
    ring_means,
    swiss_roll,
    toy,
    two_moons,
)

# each set with the variances that its documentation gives
SETS = [
    (lambda n, seed: swiss_roll(n, noise=0.0, seed=seed), (0.952, 1.048)),
    (lambda n, seed: two_moons(n, noise=0.0, seed=seed), (1.509, 0.491)),
    (lambda n, seed: checkerboard(n, seed=seed), (1.0, 1.0)),
    (lambda n, seed: gaussian_ring(n, seed=seed), (1.4**2 / 2 + 0.1**2,) * 2),
    (lambda n, seed: gaussian_grid(n, seed=seed), (0.7**2 * (5**2 - 1) / 12 + 0.07**2,) * 2),
    (lambda n, seed: gaussian_grid(n, side=3, spacing=1.2, seed=seed), (1.2**2 * 8 / 12 + 0.07**2,) * 2),
]
each_set = pytest.mark.parametrize("draw, variance", SETS, ids=["roll", "moons", "board", "ring", "grid", "grid3"])


@each_set
def test_shape_dtype_and_seed(draw, variance):
    x = draw(37, seed=5)
    assert x.shape == (37, 2) and x.dtype == torch.float32 and x.isfinite().all()
    assert torch.equal(x, draw(37, seed=5))
    assert not torch.equal(x, draw(37, seed=6))


@each_set
def test_seeds_do_not_touch_the_global_generator(draw, variance):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    draw(5, seed=1)
    assert torch.equal(before, torch.get_rng_state())


@each_set
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_mean_is_zero_and_variance_as_documented(draw, variance, seed):
    n = 40_000
    x = draw(n, seed).double()
    # five standard errors of a mean; the variance's is below that of a normal, sqrt(2 / n), as the tails are
    # short
    for k in (0, 1):
        assert abs(x[:, k].mean()) < 5 * math.sqrt(variance[k] / n)
        assert abs(x[:, k].var() / variance[k] - 1) < 5 * math.sqrt(2 / n)


@each_set
def test_points_are_independent_and_the_draw_is_not_standardised(draw, variance):
    # The mean of n independent points has variance v / n. Standardised draws and equally spaced points give
    # 0. The variance of 300 means has a relative standard error of sqrt(2 / 300) = 8 %; the bound is five of
    # them.
    means = torch.stack([draw(50, seed).mean(dim=0) for seed in range(300)])
    ratio = 50 * means.var(dim=0) / torch.tensor(variance)
    assert ((ratio - 1).abs() < 0.41).all(), ratio


def test_roll_constants_are_the_integrals():
    t = torch.linspace(1.5 * math.pi, 4.5 * math.pi, 200_001, dtype=torch.float64)
    curve = torch.stack([t * t.cos(), t * t.sin()], dim=1)
    mean = torch.trapezoid(curve, t, dim=0) / (3 * math.pi)
    variance = torch.trapezoid((curve - mean) ** 2, t, dim=0) / (3 * math.pi)
    torch.testing.assert_close(mean, torch.tensor(toy.ROLL_MEAN, dtype=torch.float64), atol=1e-6, rtol=0)
    assert math.isclose(toy.ROLL_SCALE, variance.mean().sqrt().item(), rel_tol=1e-6)


def test_moons_constants_are_the_integrals():
    t = torch.linspace(0, math.pi, 200_001, dtype=torch.float64)
    upper = torch.stack([t.cos(), t.sin()], dim=1)
    lower = torch.stack([1 - t.cos(), 0.5 - t.sin()], dim=1)  # as in scikit-learn's make_moons
    mean = torch.trapezoid(upper + lower, t, dim=0) / (2 * math.pi)
    square = torch.trapezoid((upper - mean) ** 2 + (lower - mean) ** 2, t, dim=0) / (2 * math.pi)
    torch.testing.assert_close(mean, torch.tensor(toy.MOONS_MEAN, dtype=torch.float64), atol=1e-6, rtol=0)
    assert math.isclose(toy.MOONS_SCALE, square.mean().sqrt().item(), rel_tol=1e-6)


def test_noiseless_roll_lies_on_the_spiral():
    raw = swiss_roll(500, noise=0.0).double() * toy.ROLL_SCALE + torch.tensor(toy.ROLL_MEAN)
    radius = raw.norm(dim=1)  # equals the angle
    assert (radius >= 1.5 * math.pi - 1e-4).all() and (radius <= 4.5 * math.pi + 1e-4).all()
    on_spiral = torch.stack([radius * radius.cos(), radius * radius.sin()], dim=1)
    torch.testing.assert_close(raw, on_spiral, atol=1e-4, rtol=0)


def test_noiseless_moons_lie_on_two_half_circles():
    raw = two_moons(500, noise=0.0).double() * toy.MOONS_SCALE + torch.tensor(toy.MOONS_MEAN)
    upper = ((raw.norm(dim=1) - 1).abs() < 1e-5) & (raw[:, 1] > -1e-5)
    lower = (((raw - torch.tensor([1.0, 0.5])).norm(dim=1) - 1).abs() < 1e-5) & (raw[:, 1] < 0.5 + 1e-5)
    assert (upper | lower).all() and 150 < upper.sum() < 350


def test_moons_have_random_angles():
    # cos^2 of the angle is the same on both moons; its variance is 1/8, and equal angles would give a constant mean
    def mean_square(seed):
        raw = two_moons(50, noise=0.0, seed=seed).double() * toy.MOONS_SCALE + torch.tensor(toy.MOONS_MEAN)
        upper = (raw.norm(dim=1) - 1).abs() < 1e-5
        return torch.where(upper, raw[:, 0], 1 - raw[:, 0]).square().mean()

    ratio = 50 * torch.stack([mean_square(seed) for seed in range(300)]).var() / 0.125
    assert abs(ratio - 1) < 0.41  # five standard errors, as above


@pytest.mark.parametrize("make", [swiss_roll, two_moons])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_noise_is_in_the_units_of_the_result(make, seed):
    # with noise far above the shape, the variance is that of the noise and the shape together
    x = make(20_000, noise=3.0, seed=seed)
    assert abs(x.var(dim=0).mean() - (9.0 + 1.0)) < 0.35  # five standard errors


@pytest.mark.parametrize("cells", [2, 4, 6])
def test_checkerboard_fills_every_other_cell_evenly(cells):
    n = 20_000
    x = checkerboard(n, cells=cells)
    assert x.abs().max() <= math.sqrt(3.0)
    index = ((x / math.sqrt(3.0) + 1) / 2 * cells).floor().long().clamp(0, cells - 1)
    assert (index.sum(dim=1) % 2 == 0).all()
    share = torch.bincount(index[:, 0] * cells + index[:, 1], minlength=cells**2).view(cells, cells) / n
    filled = 2 / cells**2
    dark = (torch.arange(cells)[:, None] + torch.arange(cells)) % 2 == 0
    assert (share[dark] - filled).abs().max() < 5 * math.sqrt(filled / n)


def test_ring_and_grid_means():
    ring = ring_means(modes=4, radius=2.0)
    torch.testing.assert_close(ring, torch.tensor([[2.0, 0], [0, 2], [-2, 0], [0, -2]]), atol=1e-6, rtol=0)
    grid = grid_means(side=3, spacing=1.5)
    line = [-1.5, 0.0, 1.5]
    assert grid.tolist() == [[a, b] for b in line for a in line]
    assert torch.equal(grid_means(side=1), torch.zeros(1, 2))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_mixtures_have_the_means_the_spread_and_the_weights_asked_for(seed):
    n, weights = 20_000, torch.tensor([6.0, 1.0, 2.0, 1.0])
    x = gaussian_ring(n, modes=4, radius=2.0, std=0.2, weights=weights, seed=seed)
    means = ring_means(4, 2.0)
    nearest = torch.cdist(x, means).argmin(dim=1)
    share = torch.bincount(nearest, minlength=4) / n
    assert (share - weights / 10).abs().max() < 5 * 0.5 / math.sqrt(n)
    rest = x - means[nearest]
    assert (rest.std(dim=0) / 0.2 - 1).abs().max() < 5 / math.sqrt(2 * n)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: swiss_roll(0), "n must be at least 1, got 0"),
        (lambda: swiss_roll(5, noise=-0.1), "noise must be zero or more, got -0.1"),
        (lambda: two_moons(5, noise=math.nan), "noise must be zero or more, got nan"),
        (lambda: checkerboard(5, cells=3), "cells must be an even number of at least 2, got 3"),
        (lambda: ring_means(0), "modes must be at least 1, got 0"),
        (lambda: ring_means(3, radius=0.0), "radius must be positive, got 0.0"),
        (lambda: grid_means(-1), "side must be at least 1, got -1"),
        (lambda: grid_means(3, spacing=-1.0), "spacing must be positive, got -1.0"),
        (lambda: gaussian_ring(5, std=-1.0), "std must be zero or more, got -1.0"),
        (lambda: gaussian_grid(5, side=2, weights=torch.ones(3)), "weights must be 4 numbers >= 0"),
        (lambda: gaussian_ring(5, modes=2, weights=torch.tensor([1.0, -1.0])), "weights must be 2 numbers"),
        (lambda: gaussian_ring(5, modes=2, weights=torch.zeros(2)), "weights must be 2 numbers"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
