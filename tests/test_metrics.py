"""Metrics against closed forms, and against the failures that a weaker metric lets through."""

import math

import pytest
import torch

from tinydiff.datasets import digits, grid_means, swiss_roll
from tinydiff.metrics import (
    chamfer,
    classifier_two_sample_test,
    digit_accuracy,
    energy_distance,
    floor,
    memorisation,
    mode_weights,
    nearest_distance,
    read_digits,
    sliced_wasserstein,
)
from tinydiff.metrics.samples import _pair

SEEDS = pytest.mark.parametrize("seed", [0, 1, 2])


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mean_size(mean: float, std: float) -> float:
    """E|Z| for Z normal: the folded normal."""
    peak = std * math.sqrt(2 / math.pi) * math.exp(-(mean**2) / (2 * std**2))
    return peak + mean * math.erf(mean / (std * math.sqrt(2)))


@SEEDS
@pytest.mark.parametrize("mean, std", [(1.0, 1.0), (0.5, 2.0), (0.0, 3.0)])
def test_energy_distance_of_two_normals(mean, std, seed):
    n = 4000
    x, y = normal(n, 1, seed=2 * seed), mean + std * normal(n, 1, seed=2 * seed + 1)
    truth = 2 * mean_size(mean, math.hypot(1, std)) - 2 / math.sqrt(math.pi) * (1 + std)
    # the largest error over 20 seeds was 0.051, 0.034 and 0.047 for the three cases
    assert abs(energy_distance(x, y) - truth) < 0.08


def test_energy_distance_has_no_bias():
    # at n = 5 pairing points with themselves would add 2 / sqrt(pi) * 2 / 5 = 0.45
    values = torch.tensor([energy_distance(normal(5, 1, seed=s), normal(5, 1, seed=9999 - s)) for s in range(2000)])
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(len(values))
    assert (values < 0).any()


@SEEDS
def test_energy_distance_by_brute_force_unequal_sizes_and_chunks(seed, monkeypatch):
    x, y = normal(7, 3, seed=seed), normal(11, 3, seed=seed + 50) + 1

    def mean(a, b, skip_same):
        pairs = [(a[i] - b[j]).norm() for i in range(len(a)) for j in range(len(b)) if not (skip_same and i == j)]
        return torch.stack(pairs).mean()

    truth = 2 * mean(x, y, False) - mean(x, x, True) - mean(y, y, True)
    assert math.isclose(energy_distance(x, y), truth.item(), abs_tol=1e-5)
    monkeypatch.setattr("tinydiff.metrics.samples.ROWS", 3)
    assert math.isclose(energy_distance(x, y), truth.item(), abs_tol=1e-5)
    assert math.isclose(energy_distance(y, x), energy_distance(x, y), abs_tol=1e-9)


def test_distances_ignore_order_and_move_with_scale():
    x, y = normal(200, 2), swiss_roll(200)
    for metric in (energy_distance, sliced_wasserstein):
        assert math.isclose(metric(x.flip(0), y), metric(x, y), rel_tol=1e-9)
        assert math.isclose(metric(3 * x, 3 * y), 3 * metric(x, y), rel_tol=1e-5)
        assert math.isclose(metric(x + 5, y + 5), metric(x, y), rel_tol=1e-4)
        assert math.isclose(metric(x.view(200, 1, 2), y.view(200, 1, 2)), metric(x, y))


def test_sliced_wasserstein_in_one_dimension_is_the_sorted_distance():
    x, y = torch.tensor([[0.0], [3.0], [1.0]]), torch.tensor([[2.0], [1.0], [7.0]])
    # pairs (0, 1), (1, 2), (3, 7): mean of squares (1 + 1 + 16) / 3
    assert math.isclose(sliced_wasserstein(x, y, projections=1), math.sqrt(6), rel_tol=1e-9)


@SEEDS
def test_sliced_wasserstein_of_a_shift(seed):
    x = normal(100, 16, seed=seed)
    shift = normal(16, seed=seed + 10)
    ratio = sliced_wasserstein(x, x + shift, projections=4000, seed=seed) / (shift.norm() / 4)
    # the mean square of 4,000 projections has a relative standard error of sqrt(2 * 15 / 18 / 4000) = 2.0 %;
    # its root half of that, 1.0 %; the bound is five
    assert abs(ratio - 1) < 0.05


def test_sliced_wasserstein_is_zero_for_a_permutation_and_fixed_by_its_seed():
    x, y = normal(50, 4), normal(50, 4, seed=1)
    assert sliced_wasserstein(x, x.flip(0)) == pytest.approx(0, abs=1e-12)
    assert sliced_wasserstein(x, y, seed=3) == sliced_wasserstein(x, y, seed=3)
    assert sliced_wasserstein(x, y, seed=3) != sliced_wasserstein(x, y, seed=4)


def test_mode_weights_count_the_nearest_mean(monkeypatch):
    means = grid_means(3, spacing=1.0)
    counts = torch.arange(9).flip(0)  # the last mean gets none, and must be there all the same
    x = means.repeat_interleave(counts, dim=0) + 0.1 * normal(int(counts.sum()), 2)
    monkeypatch.setattr("tinydiff.metrics.samples.ROWS", 7)
    torch.testing.assert_close(mode_weights(x, means), counts / 36)


def test_two_sample_z_is_standard_normal_for_equal_laws():
    z = torch.tensor([classifier_two_sample_test(swiss_roll(200, seed=s), swiss_roll(200, seed=s + 500)).z
                      for s in range(100)])  # fmt: skip
    # 300 pairs gave a mean of 0.02 and a deviation of 0.94 to 0.98. Standard errors here: 0.1 and 0.07.
    assert abs(z.mean()) < 0.4 and 0.75 < z.std() < 1.25


@SEEDS
def test_two_sample_test_sees_a_shift(seed):
    x, y = normal(300, 2, seed=seed), normal(300, 2, seed=seed + 10) + torch.tensor([1.0, 0.0])
    accuracy, z = classifier_two_sample_test(x, y, seed)
    # the best rule is right with probability Phi(1/2) = 0.69, with a standard error of 0.027 at 300 test
    # points
    assert abs(accuracy - 0.69) < 0.1 and z == pytest.approx((accuracy - 0.5) * math.sqrt(4 * 300))
    assert z > 3  # at least 4.39 over 10 seeds
    assert classifier_two_sample_test(x, y, seed) == (accuracy, z)


def test_nearest_distance(monkeypatch):
    train = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    x = torch.tensor([[0.0, 0.0], [3.0, 0.0], [3.0, 6.0]])
    assert nearest_distance(x, train).tolist() == [0.0, 3.0, 2.0]
    monkeypatch.setattr("tinydiff.metrics.samples.ROWS", 2)
    assert nearest_distance(x, train).tolist() == [0.0, 3.0, 2.0]


def test_copies_are_at_distance_zero_in_high_dimension():
    # a distance through a matrix product gives about 1e-7 here
    x = normal(300, 64)
    assert (nearest_distance(x.flip(0), x) == 0).all()


@SEEDS
def test_memorisation_is_the_mann_whitney_probability(seed):
    train, fresh, x = normal(30, 2, seed=seed), normal(20, 2, seed=seed + 10), normal(25, 2, seed=seed + 20)
    x = torch.cat([x, fresh[:4]])  # some ties
    a, b = nearest_distance(x, train), nearest_distance(fresh, train)
    truth = ((a[:, None] < b).double() + 0.5 * (a[:, None] == b).double()).mean().item()
    assert memorisation(x, train, fresh) == pytest.approx(truth, abs=1e-12)
    assert memorisation(fresh, train, fresh) == 0.5
    assert memorisation(train, train, fresh) == 1.0


@SEEDS
def test_memorisation_of_fresh_data_is_one_half_on_digits_and_roll(seed):
    # standard error sqrt((n + m + 1) / (12 n m)) = 0.0183 at 500 and 500; the bound is four
    train, fresh, x = (swiss_roll(500, seed=seed + k) for k in (0, 10, 20))
    assert abs(memorisation(x, train, fresh) - 0.5) < 0.073
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(seed))
    train, fresh, x = digits().x0[order[:1500]], digits().x0[order[1500:1640]], digits().x0[order[1640:1780]]
    assert abs(memorisation(x, train, fresh) - 0.5) < 4 * math.sqrt(281 / (12 * 140 * 140))
    assert memorisation(x + 0.3 * normal(140, 1, 8, 8, seed=seed), train, fresh) < 0.3  # at most 0.077 over 10 seeds


def wrong_samples(seed: int, n: int = 2048) -> dict[str, torch.Tensor]:
    train, fresh, other, pool = (swiss_roll(size, seed=seed + k) for k, size in
                                 ((100, n), (200, n), (300, n), (400, 20 * n)))  # fmt: skip
    g = torch.Generator().manual_seed(seed)
    left, k = pool[:, 0] < 0, int(0.9 * n)
    return {
        "train": train,
        "fresh": fresh,
        "good": other,
        "some": train[torch.randint(205, (n,), generator=g)],
        "skewed": torch.cat([pool[left][:k], pool[~left][: n - k]]),
        "blurred": other + 0.07 * torch.randn(n, 2, generator=g),
        "normal": torch.randn(n, 2, generator=g),
    }


@SEEDS
def test_chamfer_alone_lets_a_memoriser_and_a_wrong_density_pass(seed):
    """The table at the head of tinydiff/metrics/samples.py: its ranges over the same seeds, with a margin of 1.2."""
    s = wrong_samples(seed)
    fresh, by_chance = s["fresh"], chamfer(s["good"], s["fresh"])
    # Chamfer: all of these are within a factor of 7.5 of chance, where a plain normal is at 150. A wrong
    # density looks better to it than a harmless blur, and a copy of the training set is perfect.
    assert chamfer(s["normal"], fresh) > 120 * by_chance
    assert chamfer(s["some"], fresh) < 7.5 * by_chance
    assert chamfer(s["skewed"], fresh) < chamfer(s["blurred"], fresh) < 2.8 * by_chance
    assert abs(chamfer(s["train"], fresh) / by_chance - 1) < 0.1
    # The energy distance: the wrong density is 100 times what chance and the blur give.
    assert energy_distance(s["skewed"], fresh) > 0.27
    assert abs(energy_distance(s["blurred"], fresh)) < 0.0025 > abs(energy_distance(s["good"], fresh))
    # Copying: only this one sees the full copy.
    for name in ("some", "train"):
        assert memorisation(s[name], s["train"], fresh) == 1.0
    assert abs(energy_distance(s["train"], fresh)) < 0.0025
    for name in ("good", "skewed"):
        assert abs(memorisation(s[name], s["train"], fresh) - 0.5) < 0.04


def test_floor_is_the_median_over_pairs_of_different_draws():
    seen = []

    def draw(n: int, seed: int) -> torch.Tensor:
        seen.append(seed)
        return torch.full((n, 1), float(seed))

    def metric(x: torch.Tensor, y: torch.Tensor) -> float:
        assert len(x) == len(y) == 3
        return float(x[0] ** 2 + y[0])

    # pairs (10, 11), (12, 13), (14, 15): 111, 157, 211
    assert floor(metric, draw, 3, pairs=3, seed=10) == 157
    assert seen == [10, 11, 12, 13, 14, 15]


def test_floor_takes_the_librarys_own_data():
    lowest = floor(sliced_wasserstein, swiss_roll, 500, pairs=3)
    assert 0 < lowest < sliced_wasserstein(normal(500, 2), swiss_roll(500)) / 2


def test_digit_reader():
    x0, y = digits()
    assert digit_accuracy(x0, y) > 0.99  # 0.9967
    assert read_digits(x0[:3]).tolist() == [0, 1, 2] and read_digits(x0[:3]).dtype == torch.int64
    assert digit_accuracy(x0, (y + 1) % 10) < 0.01
    noise = normal(500, 1, 8, 8).clamp(-1, 1)
    assert digit_accuracy(noise, y[:500]) < 0.2  # chance is 0.1, with a standard error of 0.013


def test_digit_reader_has_not_seen_the_test_digits_when_fitted_to_the_others():
    # how good a reader of this kind is on digits that it has not seen: what 0.9967 above does not say
    from sklearn.svm import SVC

    from tinydiff.datasets import digits_test, digits_train

    (a, b), (c, d) = digits_train(), digits_test()
    assert SVC().fit(a.flatten(1), b).score(c.flatten(1), d) > 0.97  # 0.983


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: energy_distance(normal(1, 2), normal(5, 2)), "x must hold at least 2 points"),
        (lambda: energy_distance(normal(5, 2), normal(5, 2) * math.nan), "y must be finite, got 10 values"),
        (lambda: sliced_wasserstein(normal(5, 2), normal(6, 2)), "y must have as many points as x, 5, got 6"),
        (
            lambda: sliced_wasserstein(normal(5, 2), normal(5, 2), projections=0),
            "projections must be at least 1",
        ),
        (lambda: classifier_two_sample_test(normal(9, 2), normal(9, 2)), "x must hold at least 10 points"),
        (lambda: classifier_two_sample_test(normal(20, 2), normal(30, 2)), "as many points as x, 20, got 30"),
        (lambda: nearest_distance(normal(5, 2), normal(0, 2)), "train must hold at least 1 points"),
        (lambda: floor(energy_distance, swiss_roll, 10, pairs=0), "pairs must be at least 1, got 0"),
        (lambda: digit_accuracy(digits().x0[:3], digits().y[:4]), "y must hold one label for each of the 3"),
        # below the public functions, where annotations that are checked in tests would speak first
        (
            lambda: _pair(normal(5, 2), normal(5, 3), names=("x", "means")),
            r"means must hold .* \(2,\), got \(3,\)",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
