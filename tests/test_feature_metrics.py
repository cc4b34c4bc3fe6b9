"""Metrics of features against closed forms, plain loops, and samples that are wrong in a known way."""

import math
import sys
import types

import jaxtyping
import numpy as np
import pytest
import scipy.linalg
import torch
from safetensors.torch import load_file, save_file

from tinydiff import metrics
from tinydiff.metrics import (
    Moments,
    against_n,
    density_coverage,
    floor,
    frechet_distance,
    frechet_extrapolated,
    inception_fid,
    inception_moments,
    kid,
    kid_blocks,
    precision_recall,
)
from tinydiff.metrics.inception import inception_network, to_uint8

SEEDS = pytest.mark.parametrize("seed", [0, 1, 2])


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rotation(d: int, seed: int = 0) -> torch.Tensor:
    return torch.linalg.qr(normal(d, d, seed=seed).double()).Q


def law(mean, cov) -> Moments:
    """The moments of a law, as if of a very large sample."""
    return Moments(torch.as_tensor(mean).double(), torch.as_tensor(cov).double(), 10**9)


def random_law(d: int, seed: int, rank: int | None = None) -> Moments:
    factor = normal(d, rank or 2 * d, seed=seed).double()
    return law(normal(d, seed=seed + 1000), factor @ factor.T / d)


@pytest.fixture
def small_chunks(monkeypatch):
    for module in ("samples", "features"):
        monkeypatch.setattr(f"tinydiff.metrics.{module}.ROWS", 3)


# ---- moments -----------------------------------------------------------------------------------------


@SEEDS
def test_moments_of_batches_are_those_of_the_whole(seed):
    x = normal(50, 3, seed=seed) * torch.tensor([1.0, 10.0, 0.1]) + 5
    for batches in (x, x.split(7), (rows for rows in x.split(1))):
        m = Moments.of(batches)
        torch.testing.assert_close(m.mean, x.double().mean(dim=0))
        torch.testing.assert_close(m.cov, torch.cov(x.T.double()))  # divisor n - 1
        assert m.n == 50 and m.mean.dtype == m.cov.dtype == torch.float64


def test_moments_keep_their_digits_far_from_zero():
    x = normal(1000, 2).double()
    far = Moments.of((x + 1e7).split(100))
    # 1e7 keeps 1e-9 of a number near 1; a difference of sums of squares would keep 1e-2
    torch.testing.assert_close(far.cov, torch.cov(x.T), atol=1e-7, rtol=0)


def test_moments_are_saved_and_stand_for_their_features(tmp_path):
    x, y = normal(40, 2, 3), normal(30, 2, 3, seed=1) + 1
    save_file(Moments.of(y).tensors(), tmp_path / "reference.safetensors")
    kept = Moments.from_tensors(load_file(tmp_path / "reference.safetensors"))
    assert kept.n == 30 and isinstance(kept.n, int) and torch.equal(kept.cov, Moments.of(y).cov)
    assert frechet_distance(x, kept) == frechet_distance(x, y) == frechet_distance(Moments.of(x), kept)


# ---- the Frechet distance ----------------------------------------------------------------------------


@pytest.mark.parametrize("m1, s1, m2, s2", [(0, 1, 3, 1), (0, 1, 0, 2), (-1, 0.5, 2, 3), (1, 0, 2, 0)])
def test_frechet_in_one_dimension(m1, s1, m2, s2):
    truth = (m1 - m2) ** 2 + (s1 - s2) ** 2
    assert frechet_distance(law([m1], [[s1**2]]), law([m2], [[s2**2]])) == pytest.approx(truth, rel=1e-12)


@SEEDS
def test_frechet_of_commuting_covariances(seed):
    # |m1 - m2|^2 + sum (sqrt l1 - sqrt l2)^2, with the eigenvalues in the order of their common vectors
    q, l1, l2 = rotation(6, seed), normal(6, seed=seed).double().exp(), normal(6, seed=seed + 9).double().exp()
    gap = normal(6, seed=seed + 20).double()
    x, y = law(torch.zeros(6), q * l1 @ q.T), law(gap, q * l2 @ q.T)
    truth = (gap.square().sum() + (l1.sqrt() - l2.sqrt()).square().sum()).item()
    assert frechet_distance(x, y) == pytest.approx(truth, rel=1e-12)


@SEEDS
@pytest.mark.parametrize("d", [2, 5, 20])
def test_frechet_is_the_formula_with_a_matrix_root(d, seed):
    x, y = random_law(d, seed), random_law(d, seed + 50)
    root = scipy.linalg.sqrtm((x.cov @ y.cov).numpy()).real
    truth = (x.mean - y.mean).square().sum() + x.cov.trace() + y.cov.trace() - 2 * np.trace(root)
    assert frechet_distance(x, y) == pytest.approx(truth.item(), rel=1e-9)
    assert frechet_distance(y, x) == pytest.approx(frechet_distance(x, y), rel=1e-9)


@SEEDS
def test_frechet_of_samples_moves_as_a_squared_distance(seed):
    x, y = normal(200, 8, seed=seed).double(), 2 * normal(150, 8, seed=seed + 5).double()
    q, value = rotation(8, seed), frechet_distance(x, y)
    assert frechet_distance(x @ q + 3, y @ q + 3) == pytest.approx(value, rel=1e-9)
    assert frechet_distance(3 * x, 3 * y) == pytest.approx(9 * value, rel=1e-9)
    assert frechet_distance(x.flip(0).view(200, 2, 4), y.view(150, 2, 4)) == pytest.approx(value, rel=1e-9)
    shift = normal(8, seed=seed + 30).double()
    assert frechet_distance(x, x + shift) == pytest.approx(shift.square().sum().item(), rel=1e-9)


@SEEDS
def test_frechet_of_singular_covariances(seed):
    x = normal(10, 30, seed=seed)  # fewer points than dimensions
    # through eigenvalues of C1^1/2 C2 C1^1/2 this is up to 1e-6
    assert abs(frechet_distance(x, x.clone())) < 1e-10  # at most 1.1e-13 over 20 seeds
    y = random_law(30, seed, rank=4)
    exact = law(y.mean + 2, y.cov)
    assert frechet_distance(y, exact) == pytest.approx(4 * 30, abs=1e-8)
    # flat in a direction that the other has: the whole variance there
    flat, round_ = law([0, 0], torch.diag(torch.tensor([1.0, 0.0]))), law([0, 0], torch.eye(2))
    assert frechet_distance(flat, round_) == pytest.approx(1, abs=1e-7)


def bias(eigenvalues: torch.Tensor) -> float:
    """n times the Frechet distance of two Gaussian samples of n points, to first order. Derivation:

    the means give 2 tr C / n. For C1 = C + E1, C2 = C + E2 the other term is sum_ij (E1 - E2)_ij^2 / (2 (l_i + l_j))
    in the eigenvectors of C, to second order in E, and E_ij^2 is l_i l_j (1 + delta_ij) / n on average (Wishart).
    """
    outer = eigenvalues.outer(eigenvalues)
    off = outer / (eigenvalues[:, None] + eigenvalues)
    return (2 * eigenvalues.sum() + off.sum() + off.diagonal().sum()).item()


def test_the_bias_for_a_unit_covariance():
    assert bias(torch.ones(64)) == 64**2 / 2 + 5 * 64 / 2


def pair(n: int, d: int, seed: int, m: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Two samples of one law."""
    return normal(n, d, seed=2 * seed), normal(m or n, d, seed=2 * seed + 1)


@SEEDS
@pytest.mark.parametrize("scales", [torch.ones(8), torch.tensor([3.0, 1.0, 0.3, 0.1])], ids=["unit", "wide"])
def test_frechet_of_equal_laws_falls_like_one_over_n(scales, seed):
    truth = bias(scales.square())
    for n, draws in ((100, 150), (800, 60)):
        pairs = (pair(n, len(scales), 1000 * seed + s) for s in range(draws))
        values = n * torch.tensor([frechet_distance(scales * x, scales * y) for x, y in pairs])
        # the error is 2 to 3 % of the truth for "unit", 6 to 13 % for "wide"; at most 2.0 errors off
        assert abs(values.mean() - truth) < 3 * values.std() / math.sqrt(draws)


@SEEDS
def test_frechet_extrapolated_has_lost_the_bias(seed):
    # 12 other seeds: value -0.002 with a deviation of 0.016, beside a distance of 0.082
    x, y = pair(2000, 16, seed)
    value, slope = frechet_extrapolated(x, y, seed=seed)
    assert abs(value) < 0.05 < frechet_distance(x, y)  # at most 0.021, and at least 0.076
    assert 0.6 < slope / bias(torch.ones(16)) < 1.4  # 0.97 to 1.11
    # against moments, only the share of x goes: half of it
    value, slope = frechet_extrapolated(x, Moments.of(y), seed=seed)
    assert 0.01 < value < 0.07 and 0.3 < slope / bias(torch.ones(16)) < 0.7  # 0.034 to 0.049; 0.45 to 0.57


def test_frechet_extrapolated_fits_a_line_in_one_over_n():
    x, y, sizes = *pair(300, 4, 0, m=250), [50, 120, 250]
    values = against_n(frechet_distance, x, y, sizes, repeats=1, seed=3).values[:, 0]
    slope, value = np.polyfit(1 / np.array(sizes), values.numpy(), 1)
    assert frechet_extrapolated(x, y, sizes, seed=3) == pytest.approx((value, slope), rel=1e-9)


# ---- the kernel distance -----------------------------------------------------------------------------


def plain_kid(x, y) -> float:
    def mean(a, b, skip_same):
        total, pairs = 0.0, 0
        for i in range(len(a)):
            for j in range(len(b)):
                if not (skip_same and i == j):
                    total += (sum(float(p * q) for p, q in zip(a[i], b[j], strict=True)) / len(a[i]) + 1) ** 3
                    pairs += 1
        return total / pairs

    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


@SEEDS
def test_kid_by_plain_loops_and_in_chunks(seed, small_chunks):
    x, y = normal(7, 3, seed=seed).double(), normal(5, 3, seed=seed + 50).double() + 1
    assert kid(x, y) == pytest.approx(plain_kid(x, y), rel=1e-9)
    assert kid(y, x) == pytest.approx(kid(x, y), rel=1e-9)
    assert kid(x @ rotation(3), y @ rotation(3)) == pytest.approx(kid(x, y), rel=1e-9)  # not if shifted or scaled


@SEEDS
@pytest.mark.parametrize("n, m", [(5, 5), (7, 20)])
def test_kid_has_no_bias(n, m, seed):
    values = torch.tensor([kid(*pair(n, 3, 1000 * seed + s, m=m)) for s in range(500)])
    # at n = m = 5 pairs of a point with itself would add 2 (E k(x, x) - E k(x, x')) / 5 = 4.4, or 50 standard
    # errors; off by 2.9 at one seed, by at most 1.2 at the others
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(len(values))
    assert (values < 0).any()


@SEEDS
def test_kid_of_a_shift(seed):
    # (a b + 1)^3 = 1 + 3 a b + 3 a^2 b^2 + a^3 b^3, so in one dimension it is 3, 3 and 1 times the squared gaps of the
    # first three moments; those of N(v, 1) and N(0, 1) differ by v, v^2 and v^3 + 3 v
    v = 0.5
    truth = 3 * v**2 + 3 * v**4 + (v**3 + 3 * v) ** 2
    values = torch.tensor([kid(a, b + v) for a, b in (pair(200, 1, 1000 * seed + s) for s in range(60))])
    # one error is 6 to 8 % of the truth; at most 1.5 of them off
    assert abs(values.mean() - truth) < 3 * values.std() / math.sqrt(60)


@SEEDS
def test_kid_blocks_are_disjoint_and_cover_the_sample(seed, monkeypatch):
    seen = []
    monkeypatch.setattr("tinydiff.metrics.features.kid", lambda a, b: seen.append((a, b)) or float(len(seen)))
    x, y = torch.arange(23.0)[:, None], torch.arange(31.0)[:, None]
    mean, error = kid_blocks(x, y, size=5, seed=seed)
    assert [(len(a), len(b)) for a, b in seen] == [(5, 5)] * 4
    for side in zip(*seen, strict=True):
        assert len(torch.cat(side).unique()) == 20
    # 1, 2, 3, 4: standard deviation sqrt(5 / 3), over 2
    assert mean == 2.5 and error == pytest.approx(math.sqrt(5 / 3) / 2)


def test_the_error_of_kid_blocks_is_right():
    z = torch.tensor([mean / error for mean, error in (kid_blocks(*pair(400, 3, s), size=40) for s in range(100))])
    # Student's t with 9 degrees of freedom has standard deviation 1.13; here -0.10 and 1.16
    assert abs(z.mean()) < 0.4 and 0.85 < z.std() < 1.45


# ---- nearest neighbours ------------------------------------------------------------------------------


def inside_balls(points, centres, k) -> list[list[bool]]:
    """[i][j]: is point i in the ball of centre j?"""
    radii = [sorted((c - other).norm().item() for i, other in enumerate(centres) if i != j)[k - 1]
             for j, c in enumerate(centres)]  # fmt: skip
    return [[(p - c).norm().item() <= r for c, r in zip(centres, radii, strict=True)] for p in points]


@SEEDS
@pytest.mark.parametrize("k", [1, 3, 5])
def test_neighbours_by_plain_loops_and_in_chunks(k, seed, small_chunks):
    x, y = normal(14, 3, seed=seed).double(), normal(11, 3, seed=seed + 50).double() + 0.5
    in_y, in_x = inside_balls(x, y, k), inside_balls(y, x, k)
    assert precision_recall(x, y, k) == pytest.approx((sum(map(any, in_y)) / 14, sum(map(any, in_x)) / 11))
    counts = [sum(column) for column in zip(*in_y, strict=True)]
    assert density_coverage(x, y, k) == pytest.approx((sum(counts) / (14 * k), sum(c > 0 for c in counts) / 11))
    assert precision_recall(y, x, k) == precision_recall(x, y, k)[::-1]
    moved = (3 * x @ rotation(3) - 1, 3 * y @ rotation(3) - 1)
    assert precision_recall(*moved, k) == precision_recall(x, y, k)
    assert density_coverage(*moved, k) == density_coverage(x, y, k)


def test_neighbours_on_a_line():
    x, y = torch.tensor([[2.0], [2.5], [20.0], [10.75]]), torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    # k = 1: the data's balls [-1, 1], [0, 2], [1, 5], [3, 11]; the samples' [1.5, 2.5], [2, 3], [10.75, ...], [2.5, 19]
    assert precision_recall(x, y, k=1) == (3 / 4, 1 / 2)
    assert density_coverage(x, y, k=1) == (4 / 4, 3 / 4)
    # k = 2: [-3, 3], [-1, 3], [0, 6], [1, 13] hold 2 and 2.5 four times each and 10.75 once
    assert precision_recall(x, y, k=2) == (3 / 4, 1)
    assert density_coverage(x, y, k=2) == (9 / 8, 1)


@SEEDS
def test_neighbours_of_wrong_samples(seed):
    near = 0.1 * normal(100, 4, seed=seed)
    two_modes = torch.cat([near, near + 10])
    # a mode is missing
    assert precision_recall(near, two_modes) == (1, 0.5)
    assert density_coverage(near, two_modes).coverage == 0.5
    # a mode is invented
    assert precision_recall(two_modes, near) == (0.5, 1)
    assert density_coverage(two_modes, near).coverage == 1
    # off the data
    assert precision_recall(near + 100, near) == (0, 0) == density_coverage(near + 100, near)
    # copies: perfect, each ball holding its centre and k neighbours; also of data that hold each point often
    for data in (near, near[:10].repeat(10, 1)):
        assert precision_recall(data, data.clone()) == (1, 1)
        assert density_coverage(data, data.clone()).coverage == 1
    assert density_coverage(near, near.clone()).density == pytest.approx(6 / 5)
    # all samples at one point of the data
    one = near[:1] + 1e-4 * normal(100, 4, seed=seed + 10)
    assert precision_recall(one, near) == (1, pytest.approx(0, abs=0.02))
    # one outlier of the data: precision believes what lies in its ball, density does not
    with_outlier, between = torch.cat([near, torch.full((1, 4), 5.0)]), 3 + 0.1 * normal(100, 4, seed=seed + 20)
    assert precision_recall(between, with_outlier).precision == 1
    assert density_coverage(between, with_outlier) == (pytest.approx(1 / 5), pytest.approx(1 / 101))


@SEEDS
@pytest.mark.parametrize("n, m, k", [(40, 40, 1), (40, 40, 5), (60, 20, 3), (20, 60, 3)])
def test_density_and_coverage_of_equal_laws(n, m, k, seed):
    pairs = (pair(n, 3, 1000 * seed + s, m=m) for s in range(150))
    values = torch.tensor([density_coverage(x, y, k) for x, y in pairs])
    truth = torch.tensor([1, 1 - math.prod((m - j) / (n + m - j) for j in range(1, k + 1))])
    error = values.std(dim=0) / math.sqrt(len(values))  # at most 0.018 and 0.0073; at most 2.2 errors off
    assert (abs(values.mean(dim=0) - truth) < 3 * error).all()


# ---- against the number of points --------------------------------------------------------------------


def test_against_n_draws_parts_without_repetition():
    seen = []

    def metric(x, y):
        seen.append((x.flatten().tolist(), y.flatten().tolist()))
        return len(x), x.mean().item()

    x, y = torch.arange(10.0)[:, None], torch.arange(100.0, 112.0)[:, None]
    curve = against_n(metric, x, y, [3, 10], repeats=4, seed=1)
    assert curve.sizes == [3, 10] and curve.values.shape == (2, 4, 2)
    assert all(len(set(a)) == len(set(b)) == n for (a, b), n in zip(seen, [3] * 4 + [10] * 4, strict=True))
    assert all(set(a) <= set(range(10)) and set(b) <= set(range(100, 112)) for a, b in seen)
    assert len({tuple(a) for a, _ in seen}) == 8
    assert curve.mean[:, 0].tolist() == [3, 10] and curve.mean[1, 1] == 4.5
    assert curve.std[0, 1] == pytest.approx(np.std([np.mean(a) for a, _ in seen[:4]], ddof=1)) and curve.std[1, 1] == 0
    again, other = (against_n(metric, x, y, [3, 10], repeats=4, seed=s) for s in (1, 2))
    assert torch.equal(again.values, curve.values) and not torch.equal(other.values, curve.values)


@SEEDS
def test_against_n_of_two_metrics(seed):
    x, y = pair(1600, 8, seed)
    distance = against_n(frechet_distance, x, y, [100, 400], seed=seed).mean
    assert 2.5 < distance[0] / distance[1] < 6.5  # 4 to first order; 3.2 to 4.3
    shares = against_n(precision_recall, x, y, [100, 400], seed=seed)
    assert shares.values.shape == (2, 5, 2) and ((0 < shares.mean) & (shares.mean < 1)).all()


def test_floor_takes_these_metrics_too():
    draw = lambda n, seed: normal(n, 8, seed=seed)  # noqa: E731
    assert floor(frechet_distance, draw, 200) == pytest.approx(bias(torch.ones(8)) / 200, rel=0.3)
    assert abs(floor(kid, draw, 200)) < 0.02
    assert floor(lambda x, y: density_coverage(x, y).coverage, draw, 200) == pytest.approx(1 - 2**-5, abs=0.04)


# ---- Inception FID -----------------------------------------------------------------------------------


class StandIn(torch.nn.Module):
    """uint8 images (b, 3, h, w) -> 5 features."""

    def __init__(self, seen: list):
        super().__init__()
        self.seen, self.weight = seen, torch.nn.Parameter(normal(48, 5))

    def forward(self, images):
        assert images.dtype == torch.uint8 and images.shape[1:] == (3, 4, 4)
        self.seen.append(len(images))
        return torch.tanh(images.flatten(1) / 100 @ self.weight)


def test_to_uint8_takes_the_nearest_level_and_repeats_one_channel():
    levels = torch.arange(256)
    image = (levels / 127.5 - 1).view(1, 1, 16, 16)
    assert torch.equal(to_uint8(image + 0.003).flatten(2), levels.to(torch.uint8).expand(1, 3, 256))  # half: 0.0039
    assert to_uint8(torch.tensor([-3.0, -1, 0.002, 1, 1.7]).view(1, 1, 1, 5))[0, 0].tolist() == [[0, 0, 128, 255, 255]]
    colours = normal(2, 3, 4, 4)
    assert torch.equal(to_uint8(colours)[:, 1], to_uint8(colours[:, 1:2])[:, 0])


def test_inception_fid_with_a_stand_in():
    seen = []
    net, samples, real = StandIn(seen), normal(70, 3, 4, 4).clamp(-1, 1), normal(65, 3, 4, 4, seed=1)
    features = [net(to_uint8(images)).detach() for images in (samples, real)]
    truth, seen[:] = frechet_distance(*features), []
    assert inception_fid(samples, real, net) == pytest.approx(truth, rel=1e-6)
    assert sorted(seen) == [1, 6, 64, 64]
    reference = inception_moments(real, net, batch_size=10)
    assert not reference.cov.requires_grad and reference.n == 65
    assert inception_fid(samples, reference, net) == pytest.approx(truth, rel=1e-6)
    grey = normal(30, 1, 4, 4)
    assert inception_fid(grey, grey.expand(-1, 3, -1, -1), net) == pytest.approx(0, abs=1e-9)


def test_torch_fidelity_is_asked_for_its_2048_features(monkeypatch):
    made = []

    class Extractor(torch.nn.Module):
        def __init__(self, name, features_list, feature_extractor_weights_path=None):
            super().__init__()
            made.append((features_list, feature_extractor_weights_path))

        def forward(self, images):  # a tuple, one entry for each of features_list
            return (images.float().flatten(1),)

    package = types.SimpleNamespace(FeatureExtractorInceptionV3=Extractor)
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    x, y = normal(30, 1, 2, 2), normal(30, 1, 2, 2, seed=1)
    truth = frechet_distance(*(to_uint8(z).float() for z in (x, y)))
    assert inception_fid(x, y) == pytest.approx(truth, rel=1e-9)
    assert inception_fid(x, y, inception_network(weights="here.pth")) == pytest.approx(truth, rel=1e-9)
    assert made == [(["2048"], None), (["2048"], "here.pth")]


def test_without_torch_fidelity_the_message_has_the_line_to_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ImportError, match=r"pip install --no-deps torch-fidelity torchvision==0.28.0"):
        inception_fid(normal(5, 3, 4, 4), normal(5, 3, 4, 4))


# ---- bad arguments -----------------------------------------------------------------------------------


@pytest.fixture
def as_a_reader():
    """Without the checks of shapes, which would speak first."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


X, Y = normal(6, 2), normal(6, 3)
IMAGES = normal(4, 3, 4, 4)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: Moments.of(X[:1]), "features must hold at least 2 points, got 1"),
        (lambda: Moments.of([X, Y]), "features must have 2 numbers a point in every batch, got 3"),
        (lambda: Moments.of([X, X / 0]), "features must be finite, got 12 values"),
        (lambda: frechet_distance(X[:1], X), r"x must hold at least 2 points, got shape \(1, 2\)"),
        (lambda: frechet_distance(X, X * math.nan), "y must be finite, got 12 values"),
        (lambda: frechet_distance(X, Y), "y must have 2 numbers a point, as x, got 3"),
        (lambda: frechet_extrapolated(X, X, sizes=[3, 3]), r"sizes must hold at least 2 different ones, got \[3, 3\]"),
        (lambda: frechet_extrapolated(X, X, sizes=[3, 7]), r"sizes must lie in \[1, 6\], got \[7\]"),
        (lambda: kid(X[:1], X), "x must hold at least 2 points"),
        (lambda: kid(X, Y), r"y must hold points of shape \(2,\), got \(3,\)"),
        (lambda: kid_blocks(X, X, size=4), r"size must lie in \[2, 3\], for at least two blocks, got 4"),
        (lambda: kid_blocks(X, X, size=0), r"size must lie in \[2, 3\], for at least two blocks, got 0"),
        (lambda: precision_recall(X, X, k=0), r"k must lie in \[1, 5\], as x has 6 points, got 0"),
        (lambda: precision_recall(X, X[:5], k=5), r"k must lie in \[1, 4\], as y has 5 points, got 5"),
        (lambda: density_coverage(X, X[:5], k=5), r"k must lie in \[1, 4\], as y has 5 points, got 5"),
        (lambda: density_coverage(X, Y), r"y must hold points of shape \(2,\), got \(3,\)"),
        (lambda: against_n(kid, X, X, [2, 7, 0]), r"sizes must lie in \[1, 6\], got \[7, 0\]"),
        (lambda: against_n(kid, X, X, [2], repeats=0), "repeats must be at least 1, got 0"),
        (lambda: inception_moments(IMAGES[:, :2], StandIn([])), r"images must have .* got \(4, 2, 4, 4\)"),
        (lambda: inception_moments(X, StandIn([])), r"images must have shape .* got \(6, 2\)"),
        (lambda: inception_fid(IMAGES / 0, IMAGES, StandIn([])), "images must be finite, got"),
    ],
)
def test_bad_arguments_are_named(call, message, as_a_reader):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_single_sample_is_enough_for_density_alone():
    y = torch.tensor([[0.0], [1.0], [3.0]])
    assert metrics.density_coverage(torch.tensor([[0.5]]), y, k=1) == (2, 2 / 3)
