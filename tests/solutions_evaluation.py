"""Solutions of exercises 15, right and wrong, and what a wrong one is told: see test_checks."""

import torch
import torch.nn.functional as F

import tinydiff as td

F64 = torch.float64

# ---- exercise 1 --------------------------------------------------------------------------------------


def extrapolate(sizes, values):
    line = torch.stack([torch.ones_like(sizes), 1 / sizes], dim=1)
    return torch.linalg.lstsq(line, values[:, None]).solution[0, 0]


def extrapolate_by_moments(sizes, values):
    u = 1 / sizes
    slope = ((u - u.mean()) * values).sum() / ((u - u.mean()) * u).sum()
    return (values.mean() - slope * u.mean()).item()


def fit_with(power=-1.0, entry=0, weights=lambda n: n**0):
    def f(sizes, values):
        line, w = torch.stack([torch.ones_like(sizes), sizes**power], dim=1), weights(sizes)[:, None]
        return torch.linalg.lstsq(w * line, w * values[:, None]).solution[entry, 0]

    return f


def ends_only(sizes, values):
    (u, v), (a, b) = ((1 / sizes[i], values[i]) for i in (0, -1))
    return v - (b - v) / (a - u) * u


EXTRAPOLATE_MUTANTS = {
    "a line in n": (fit_with(power=1.0), "exactly: the values lie on the line"),
    "a line in 1 over the root of n": (fit_with(power=-0.5), "exactly: the values lie on the line"),
    "the slope": (fit_with(entry=1), "exactly: the values lie on the line"),
    "the value at the largest n": (lambda n, v: v[n.argmax()], "exactly: the values lie on the line"),
    "the mean": (lambda n, v: v.mean(), "exactly: the values lie on the line"),
    "first and last alone": (ends_only, "the line of least squares"),
    "weighted by n": (fit_with(weights=lambda n: n), "the line of least squares"),
    "both numbers": (lambda n, v: torch.stack([fit_with()(n, v), fit_with(entry=1)(n, v)]), "one number comes back"),
}

# ---- exercise 2 --------------------------------------------------------------------------------------


def root_of(c):
    values, vectors = torch.linalg.eigh(c)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def frechet(mean1, cov1, mean2, cov2):
    shared = torch.linalg.svdvals(root_of(cov1) @ root_of(cov2)).sum()
    return (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * shared


def frechet_by_eigenvalues(mean1, cov1, mean2, cov2):
    """C1 C2 is not symmetric, but its eigenvalues are those of C1^1/2 C2 C1^1/2."""
    values = torch.linalg.eigvals(cov1 @ cov2).real.clamp(min=0)
    gap = mean1 - mean2
    return float(gap @ gap + torch.trace(cov1 + cov2) - 2 * values.sqrt().sum())


def frechet_with(
    shared=lambda a, b: torch.linalg.svdvals(root_of(a) @ root_of(b)).sum(),
    means=lambda gap: gap.square().sum(),
    factor=2,
    last=lambda v: v,
):
    return lambda m1, c1, m2, c2: last(means(m1 - m2) + c1.trace() + c2.trace() - factor * shared(c1, c2))


def by_cholesky(a, b):
    lower = torch.linalg.cholesky(a)
    return torch.linalg.eigvalsh(lower.T @ b @ lower).clamp(min=0).sqrt().sum()


def without_clamping(a, b):
    values, vectors = torch.linalg.eigh(a)
    root = (vectors * values.sqrt()) @ vectors.T
    return torch.linalg.eigvalsh(root @ b @ root).sqrt().sum()


FRECHET_MUTANTS = {
    "no means": (frechet_with(means=lambda gap: 0.0), "equal covariances"),
    "the distance of the means, not its square": (frechet_with(means=torch.norm), "equal covariances"),
    "the mean over the coordinates": (frechet_with(means=lambda gap: gap.square().mean()), "equal covariances"),
    "one root, not two": (frechet_with(factor=1), "equal covariances"),
    "the root of the distance": (frechet_with(last=lambda v: v.clamp(min=0).sqrt()), "equal covariances"),
    "the root entry by entry": (
        frechet_with(lambda a, b: (a * b).sqrt().trace()),
        "the cost of the best transport.*axes that are not shared",
    ),
    "the trace of the product of the roots": (
        frechet_with(lambda a, b: (root_of(a) @ root_of(b)).trace()),
        "the cost of the best transport.*axes that are not shared",
    ),
    "eigenvalues matched by size": (
        frechet_with(lambda a, b: (torch.linalg.eigvalsh(a) * torch.linalg.eigvalsh(b)).clamp(min=0).sqrt().sum()),
        "diagonal covariances",
    ),
    "the root of the trace": (frechet_with(lambda a, b: (a @ b).trace().sqrt()), "equal covariances"),
    "eigenvalues of the symmetric part": (
        frechet_with(lambda a, b: torch.linalg.eigvalsh((a @ b + b @ a) / 2).clamp(min=0).sqrt().sum()),
        "the cost of the best transport.*axes that are not shared",
    ),
    "an infinite root": (
        frechet_with(lambda a, b: torch.linalg.eigvalsh(root_of(a) @ b @ root_of(a)).log().exp().sqrt().sum()),
        "C1 of rank 2",
    ),
    "Cholesky": (frechet_with(by_cholesky), "the function runs.*C1 of rank 2.*may be singular.*clamp"),
    "no clamp": (frechet_with(without_clamping), "C1 of rank 2.*may be singular.*clamp"),
    "a matrix": (lambda m1, c1, m2, c2: c1 + c2, "one number comes back"),
}

# ---- exercise 3 --------------------------------------------------------------------------------------


def kernel(a, b):
    return (a @ b.T / a.shape[1] + 1) ** 3


def kid_unbiased(x, y):
    n, m = len(x), len(y)
    xx, yy = kernel(x, x), kernel(y, y)
    within = (xx.sum() - xx.trace()) / (n * (n - 1)) + (yy.sum() - yy.trace()) / (m * (m - 1))
    return within - 2 * kernel(x, y).mean()


def kid_by_masks(x, y):
    within = [kernel(z, z)[~torch.eye(len(z), dtype=torch.bool)].mean() for z in (x, y)]
    return float(within[0] + within[1] - 2 * kernel(x, y).mean())


def kid_with(k=kernel, within=None, last=lambda v: v, factor=2):
    def others(z):
        inside = k(z, z)
        return (inside.sum() - inside.trace()) / (len(z) * (len(z) - 1))

    within = within or others
    return lambda x, y: last(within(x) + within(y) - factor * k(x, y).mean())


def diagonal_left_out_of_the_sum_alone(z):
    inside = kernel(z, z)
    return (inside.sum() - inside.trace()) / len(z) ** 2


def upper_triangle_counted_once(z):
    return kernel(z, z).triu(1).sum() / (len(z) * (len(z) - 1))


def kid_of_the_same_pairs(x, y):
    """Gretton's other estimate, for equal sizes, leaves i = j out across the samples as well."""
    n = min(len(x), len(y))
    x, y = x[:n], y[:n]
    h = kernel(x, x) + kernel(y, y) - kernel(x, y) - kernel(y, x)
    return (h.sum() - h.trace()) / (n * (n - 1))


KID_MUTANTS = {
    "a point paired with itself": (kid_with(within=lambda z: kernel(z, z).mean()), "0 on average"),
    "divided by all pairs": (kid_with(within=diagonal_left_out_of_the_sum_alone), "0 on average"),
    "each pair once": (kid_with(within=upper_triangle_counted_once), "0 on average"),
    "never below 0": (kid_with(last=lambda v: v.clamp(min=0)), "0 on average.*may come out negative"),
    "its size": (kid_with(last=torch.abs), "0 on average"),
    "the cross term once": (kid_with(factor=1), "0 on average"),
    "not divided by d": (kid_with(lambda a, b: (a @ b.T + 1) ** 3), "the value of plain loops"),
    "no 1": (kid_with(lambda a, b: (a @ b.T / a.shape[1]) ** 3), "the value of plain loops"),
    "squared": (kid_with(lambda a, b: (a @ b.T / a.shape[1] + 1) ** 2), "the value of plain loops"),
    "of the means": (
        lambda x, y: (x.mean(0) - y.mean(0)).square().sum() - x.var(0).sum() / len(x) - y.var(0).sum() / len(y),
        "the value of plain loops",
    ),
    "the same pairs left out across": (kid_of_the_same_pairs, "the value of plain loops"),
    "one for each point": (lambda x, y: kernel(x, y).mean(1), "one number comes back"),
}

# ---- exercise 4 --------------------------------------------------------------------------------------


def precision(samples, data, k):
    radii = torch.cdist(data, data, compute_mode="donot_use_mm_for_euclid_dist").sort(dim=1).values[:, k]
    inside = torch.cdist(samples, data, compute_mode="donot_use_mm_for_euclid_dist") <= radii
    return inside.any(dim=1).double().mean()


def precision_by_rows(samples, data, k):
    apart = (data[:, None] - data[None]).square().sum(-1)
    apart.fill_diagonal_(torch.inf)
    squared = apart.topk(k, largest=False).values.amax(dim=1)
    found = sum(bool(((row - data).square().sum(-1) <= squared).any()) for row in samples)
    return found / len(samples)


def precision_with(
    rank=lambda k: k, inside=lambda d, r: d <= r, share=lambda b: b.any(1).double().mean(), around=lambda s, d: d
):
    def f(samples, data, k):
        balls = around(samples, data)
        apart = lambda a, b: (a[:, None] - b[None]).square().sum(-1).sqrt()  # noqa: E731
        radii = apart(balls, balls).sort(dim=1).values[:, min(rank(k), len(balls) - 1)]
        return share(inside(apart(samples, data), radii if len(radii) == len(data) else radii[:, None]))

    return f


def nearest_ball_alone(samples, data, k):
    apart = torch.cdist(data, data).sort(dim=1).values[:, k]
    distance, nearest = torch.cdist(samples, data).min(dim=1)
    return (distance <= apart[nearest]).double().mean()


def precision_by_cdist(samples, data, k):
    radii = torch.cdist(data, data).sort(dim=1).values[:, k]
    return (torch.cdist(samples, data) <= radii).any(dim=1).double().mean()


PRECISION_MUTANTS = {
    "the point itself counted": (
        precision_with(rank=lambda k: k - 1),
        "the radii are 2, 1, 2 and 9.*distance to itself",
    ),
    "one neighbour further": (precision_with(rank=lambda k: k + 1), "the radii are 2, 1, 2 and 9"),
    "the nearest point's ball alone": (nearest_ball_alone, "0.75: the last lies in the ball of 10"),
    "open balls": (precision_with(inside=lambda d, r: d < r), "the very edge"),
    "always k = 1": (precision_with(rank=lambda k: 1), "the radii are 2, 1, 2 and 9"),
    "recall": (precision_with(share=lambda b: b.any(0).double().mean()), "lie among the data"),
    "density": (
        lambda s, d, k: precision_with(share=lambda b: b.double().sum(1).mean() / k)(s, d, k),
        "very edge|ball",
    ),
    "the balls of the samples": (lambda s, d, k: precision(d, s, min(k, len(s) - 1)), "lie among the data"),
    "not a share": (precision_with(share=lambda b: b.any(1).sum()), "lie among the data"),
    "one radius for all": (
        precision_with(inside=lambda d, r: d <= r.mean()),
        "in the ball of 10",
    ),
    "distances through a matrix product": (precision_by_cdist, "only the copies are inside.*torch.cdist"),
    "a mask": (precision_with(share=lambda b: b.any(1)), "one number comes back"),
}

# ---- exercise 5 --------------------------------------------------------------------------------------


def nearest_shifted(x, train, reach):
    h, w = x.shape[2:]
    framed = F.pad(x, (reach,) * 4, value=-1.0)
    moves = [(i, j) for i in range(2 * reach + 1) for j in range(2 * reach + 1)]
    best = torch.full((len(x),), torch.inf, dtype=x.dtype)
    for i, j in moves:
        moved = framed[:, :, i : i + h, j : j + w].flatten(1)
        best = torch.minimum(best, torch.cdist(moved, train.flatten(1)).amin(dim=1))
    return best


def nearest_by_unfolding(x, train, reach):
    framed = F.pad(x, (reach,) * 4, value=-1.0)
    views = framed.unfold(2, x.shape[2], 1).unfold(3, x.shape[3], 1)  # (n, c, moves, moves, h, w)
    views = views.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    return (views[:, :, None] - train.flatten(1)).square().sum(-1).flatten(1).amin(1).sqrt()


def shifted_with(moves=None, value=-1.0, least=lambda d: d.amin((0, 2)), size=lambda v: v.square().sum(-1).sqrt()):
    moves = moves or (lambda r: [(i, j) for i in range(-r, r + 1) for j in range(-r, r + 1)])

    def f(x, train, reach):
        h, w = x.shape[2:]
        framed = F.pad(x, (reach,) * 4, value=value)
        found = []
        for i, j in moves(reach):
            moved = framed[:, :, reach + i : reach + i + h, reach + j : reach + j + w].flatten(1)
            found.append(size(moved[:, None] - train.flatten(1)))
        return least(torch.stack(found))

    return f


def by_rolling(x, train, reach):
    moves = [(i, j) for i in range(-reach, reach + 1) for j in range(-reach, reach + 1)]
    rolled = torch.stack([torch.roll(x, move, (2, 3)) for move in moves]).flatten(2)
    return (rolled[:, :, None] - train.flatten(1)).square().sum(-1).sqrt().amin((0, 2))


def by_moving_the_training_images(x, train, reach):
    h, w = x.shape[2:]
    framed = F.pad(train, (reach,) * 4, value=-1.0)
    moves = [(i, j) for i in range(2 * reach + 1) for j in range(2 * reach + 1)]
    moved = torch.cat([framed[:, :, i : i + h, j : j + w].flatten(1) for i, j in moves])
    return torch.cdist(x.flatten(1), moved).amin(1)


def along_the_axes(r):
    return [(i, 0) for i in range(-r, r + 1)] + [(0, j) for j in range(-r, r + 1)]


SHIFTED_MUTANTS = {
    "not moved at all": (shifted_with(lambda r: [(0, 0)]), "0 with reach 1"),
    "one axis at a time": (shifted_with(along_the_axes), "0 with reach 1.*1 rows and 1 columns"),
    "to one side alone": (
        shifted_with(lambda r: [(i, j) for i in range(r + 1) for j in range(r + 1)]),
        "0 with reach 1",
    ),
    "moves of exactly reach": (
        shifted_with(lambda r: [(i, j) for i in {-r, r, 0} for j in {-r, r, 0}]),
        "0 with reach 2|over all moves",
    ),
    "one pixel further": (
        lambda x, t, r: nearest_shifted(x, t, r + 1) if r else nearest_shifted(x, t, r),
        "above 0 with reach 1",
    ),
    "rolled round": (by_rolling, "over all moves.*paper, -1"),
    "grey comes in": (shifted_with(value=0.0), "0 with reach.*paper, -1, not 0"),
    "the training images moved": (by_moving_the_training_images, "over all moves.*training images stay"),
    "the mean over the moves": (shifted_with(least=lambda d: d.amin(2).mean(0)), "0 with reach 1"),
    "squared": (shifted_with(size=lambda v: v.square().sum(-1)), "reach 0 is the plain nearest"),
    "a mean over the pixels": (
        shifted_with(size=lambda v: v.square().mean(-1).sqrt()),
        "reach 0 is the plain nearest",
    ),
    "to the training images": (shifted_with(least=lambda d: d.amin((0, 1))), "shape \\(4,\\)"),
    "one number": (lambda x, t, r: nearest_shifted(x, t, r).min(), "shape \\(4,\\)"),
    "float32": (lambda x, t, r: nearest_shifted(x, t, r).float(), "dtype"),
    "always float64": (lambda x, t, r: nearest_shifted(x, t, r).double(), "in float32 has dtype torch.float32"),
}


EXERCISES = {
    "extrapolate": (td.check.extrapolate, [extrapolate, extrapolate_by_moments], EXTRAPOLATE_MUTANTS),
    "frechet": (td.check.frechet, [frechet, frechet_by_eigenvalues], FRECHET_MUTANTS),
    "kid_unbiased": (td.check.kid_unbiased, [kid_unbiased, kid_by_masks], KID_MUTANTS),
    "precision": (td.check.precision, [precision, precision_by_rows], PRECISION_MUTANTS),
    "nearest_shifted": (td.check.nearest_shifted, [nearest_shifted, nearest_by_unfolding], SHIFTED_MUTANTS),
}
