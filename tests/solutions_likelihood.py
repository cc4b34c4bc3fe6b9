"""Solutions of exercises 07, right and wrong, and what a wrong one is told: see test_checks."""

import math

import torch

import tinydiff as td
from tinydiff import ode

# ---- exercise 1 --------------------------------------------------------------------------------------


def pixel_bits(log_p, std):
    return -log_p / (len(std) * math.log(2)) + std.log2().mean()


def pixel_bits_by_library(log_p, std):
    """From the log-density of the grey levels themselves, whose bins are 1 wide."""
    return ode.bits_per_dim(log_p - std.log().sum(), len(std), 1.0)


PIXEL_MUTANTS = {
    "no bin": (lambda p, s: -p / (len(s) * math.log(2)), r"equal levels cost.*how wide"),
    "the wrong way": (lambda p, s: -p / (len(s) * math.log(2)) - s.log2().mean(), "equal levels cost"),
    "nats": (lambda p, s: -p / len(s) + s.log().mean(), "equal levels cost"),
    "not per pixel": (lambda p, s: -p / math.log(2) + s.log2().sum(), "64 pixels"),
    "log of the mean": (lambda p, s: -p / (len(s) * math.log(2)) + s.mean().log2(), "its own bin"),
    "first pixel's bin": (lambda p, s: -p / (len(s) * math.log(2)) + s[0].log2(), "its own bin"),
    "sum of the bins": (lambda p, s: -p / (len(s) * math.log(2)) + s.log2().sum(), "64 pixels"),
    "bins of the digits": (lambda p, s: -p / (len(s) * math.log(2)) + 3, "equal levels cost"),
    "mean over the batch": (lambda p, s: pixel_bits(p, s).mean(), "shape"),
}

# ---- exercise 2 --------------------------------------------------------------------------------------


def normal(x):
    return -(x**2).sum(1) / 2 - x.shape[1] / 2 * math.log(2 * math.pi)


def linear_flow_log_prob(x, A):
    return normal(x @ torch.matrix_exp(A).T) + A.trace()


def linear_flow_by_determinant(x, A):
    M = torch.matrix_exp(A)
    return normal(torch.einsum("ij,bj->bi", M, x)) + torch.linalg.slogdet(M).logabsdet


def linear_flow_by_covariance(x, A):
    M = torch.matrix_exp(-A)
    return torch.distributions.MultivariateNormal(torch.zeros(len(A), dtype=x.dtype), M @ M.T).log_prob(x)


LINEAR_MUTANTS = {
    "divergence subtracted": (lambda x, A: normal(x @ torch.matrix_exp(A).T) - A.trace(), "log-density of exp"),
    "code alone": (lambda x, A: normal(x @ torch.matrix_exp(A).T), "log-density of exp"),
    "the other direction": (lambda x, A: normal(x @ torch.matrix_exp(-A).T) - A.trace(), "log-density of exp"),
    "not transposed": (lambda x, A: normal(x @ torch.matrix_exp(A)) + A.trace(), "A of 2 x 2"),
    "one Euler step": (lambda x, A: normal(x + x @ A.T) + A.trace(), "log-density of exp"),
    "determinant, not its logarithm": (
        lambda x, A: normal(x @ torch.matrix_exp(A).T) + torch.linalg.det(torch.matrix_exp(A)),
        "log-density of exp",
    ),
    "no constant": (lambda x, A: -(x @ torch.matrix_exp(A).T).square().sum(1) / 2 + A.trace(), "log-density of exp"),
    "trace divided by the dimension": (
        lambda x, A: normal(x @ torch.matrix_exp(A).T) + A.diag().mean(),
        "A of 2 x 2",
    ),
    "one number": (lambda x, A: linear_flow_log_prob(x, A).sum(), "shape"),
}

# ---- exercise 3 --------------------------------------------------------------------------------------


def trace_estimate(f, x, z):
    forms = torch.stack([(torch.func.jvp(f, (x,), (one,))[1] * one).sum(1) for one in z])
    return forms.mean(0), forms.std(0) / len(z) ** 0.5


def trace_estimate_backward(f, x, z):
    x = x.clone().requires_grad_()
    out = f(x)
    forms = [(torch.autograd.grad((out * one).sum(), x, retain_graph=True)[0] * one).sum(1) for one in z]
    mean = sum(forms) / len(z)
    var = sum((v - mean) ** 2 for v in forms) / (len(z) - 1)
    return mean, (var / len(z)).sqrt()


def forms_of(f, x, z):
    return torch.stack([(torch.func.jvp(f, (x,), (one,))[1] * one).sum(1) for one in z])


def trace_with(of_forms):
    return lambda f, x, z: of_forms(forms_of(f, x, z))


def trace_without_z(f, x, z):
    forms = torch.stack([torch.func.jvp(f, (x,), (one,))[1].sum(1) for one in z])
    return forms.mean(0), forms.std(0) / len(z) ** 0.5


def trace_mean_over_coordinates(f, x, z):
    mean, error = trace_estimate(f, x, z)
    return mean / x.shape[1], error / x.shape[1]


def trace_of_the_batch(f, x, z):
    forms = torch.stack([(torch.func.jvp(f, (x,), (one,))[1] * one).sum().expand(len(x)) for one in z])
    return forms.mean(0), forms.std(0) / len(z) ** 0.5


def trace_exact(f, x, z):
    J = torch.stack(
        [torch.func.jvp(f, (x,), (torch.eye(x.shape[1]).to(x)[i].expand_as(x),))[1][:, i] for i in range(x.shape[1])]
    )
    return J.sum(0), forms_of(f, x, z).std(0) / len(z) ** 0.5


def trace_by_grad(f, x, z, leaf=lambda x: x.clone().requires_grad_(), retain_graph=True):
    leaf_x = leaf(x)
    out = f(leaf_x)
    forms = [(torch.autograd.grad((out * one).sum(), leaf_x, retain_graph=retain_graph)[0] * one).sum(1) for one in z]
    return torch.stack(forms).mean(0), torch.stack(forms).std(0) / len(z) ** 0.5


def trace_around_the_leaf(f, x, z):
    """f is called on what comes in, and the derivative taken at a copy that f has not seen."""
    seen, copy = x.clone().requires_grad_(), x.clone().requires_grad_()
    grads = [torch.autograd.grad((f(seen) * one).sum(), copy, allow_unused=True)[0] * one for one in z]
    return torch.stack(grads).sum(2).mean(0), torch.stack(grads).sum(2).std(0) / len(z) ** 0.5


TRACE_MUTANTS = {
    "no graph": (lambda f, x, z: trace_by_grad(f, x, z, lambda x: x), r"f\(x\) = x A\^T \+ sin.*requires a gradient"),
    "under no_grad": (torch.no_grad()(trace_by_grad), r"f\(x\) = x A\^T \+ sin.*neither no_grad nor detach"),
    "a graph used up": (lambda f, x, z: trace_by_grad(f, x, z, retain_graph=False), "function runs.*retain_graph"),
    "another copy": (trace_around_the_leaf, "NoneType.*before f is called on that copy"),
    "std with k": (trace_with(lambda v: (v.mean(0), v.std(0, correction=0) / len(v) ** 0.5)), "of a mean.*k - 1"),
    "std of one probe": (trace_with(lambda v: (v.mean(0), v.std(0))), "standard error is that of a mean"),
    "over k, not its root": (trace_with(lambda v: (v.mean(0), v.std(0) / len(v))), "standard error is that of a mean"),
    "variance": (trace_with(lambda v: (v.mean(0), v.var(0) / len(v))), "standard error is that of a mean"),
    "sum over probes": (trace_with(lambda v: (v.sum(0), v.std(0) / len(v) ** 0.5)), "mean of z"),
    "the last probe only": (trace_with(lambda v: (v[-1], v.std(0) / len(v) ** 0.5)), "mean of z"),
    "not times z": (trace_without_z, "mean of z.*times z"),
    "mean over coordinates": (trace_mean_over_coordinates, "mean of z"),
    "points mixed": (trace_of_the_batch, "alone.*points of their own"),
    "the exact trace": (trace_exact, "mean of z"),
    "the error first": (lambda f, x, z: trace_estimate(f, x, z)[::-1], "mean of z|alone"),
    "one answer": (lambda f, x, z: trace_estimate(f, x, z)[0].sum(), "a pair"),
}

# ---- exercise 4 --------------------------------------------------------------------------------------


def jacobian(f, x):
    """(b, d, d), row by row of the output."""
    x = x.detach().requires_grad_()
    out = f(x)
    rows = [torch.autograd.grad(out[:, i].sum(), x, retain_graph=True)[0] for i in range(x.shape[1])]
    return torch.stack(rows, 1)


def euler_with(step_log=None, time=lambda k, n: k / n, after=False, scale=lambda n: 1 / n, base=normal):
    def f(v, x, n):
        total, eye = 0.0, torch.eye(x.shape[1], dtype=x.dtype)
        for k in range(n):
            t, h = time(k, n), 1 / n
            moved = (x + h * v(x, t)).detach()
            J = jacobian(lambda x, t=t: v(x, t), moved if after else x)
            total = total + (step_log or (lambda J: torch.linalg.slogdet(eye + h * J).logabsdet))(scale(n) * n * J)  # noqa: B023
            x = moved
        return base(x) + total

    return f


euler_log_prob = euler_with()


def euler_log_prob_by_vmap(v, x, n):
    """The Jacobian of all steps at once: its determinant is the product."""

    def encode(row):
        for k in range(n):
            row = row + v(row[None], k / n)[0] / n
        return row

    J = torch.func.vmap(torch.func.jacrev(encode))(x)
    return normal(torch.func.vmap(encode)(x)) + torch.linalg.det(J).abs().log()


def by_trace(v, x, n):
    """What the ODE would have: the divergence of each step."""
    total = 0.0
    for k in range(n):
        total = total + jacobian(lambda x, k=k: v(x, k / n), x).diagonal(dim1=1, dim2=2).sum(1) / n
        x = (x + v(x, k / n) / n).detach()
    return normal(x) + total


def without_abs(v, x, n):
    total, eye = 0.0, torch.eye(x.shape[1], dtype=x.dtype)
    for k in range(n):
        J = jacobian(lambda x, k=k: v(x, k / n), x)
        total = total + (1 + J[:, 0, 0] / n).log() + (torch.linalg.det(eye + J / n) / (1 + J[:, 0, 0] / n)).log()
        x = (x + v(x, k / n) / n).detach()
    return normal(x) + total


def log_of_the_determinant(v, x, n):
    """Without its size: right where an even number of axes is turned round."""
    total, eye = 0.0, torch.eye(x.shape[1], dtype=x.dtype)
    for k in range(n):
        total = total + torch.linalg.det(eye + jacobian(lambda x, k=k: v(x, k / n), x) / n).log()
        x = (x + v(x, k / n) / n).detach()
    return normal(x) + total


def decoding(v, x, n):
    """The Euler steps of sampling, from 1 to 0, in place of those of encoding."""
    return euler_with(time=lambda k, n: (n - k) / n)(lambda x, t: -v(x, t), x, n)


EULER_MUTANTS = {
    "trace": (by_trace, "linear flow"),
    "no determinant": (euler_with(lambda J: 0.0), "linear flow"),
    "subtracted": (lambda v, x, n: 2 * euler_with(lambda J: 0.0)(v, x, n) - euler_log_prob(v, x, n), "linear flow"),
    "Jacobian after the step": (euler_with(after=True), "adds up to 1"),
    "times one step late": (euler_with(time=lambda k, n: (k + 1) / n), "linear flow.*steps start"),
    "times to the end inclusive": (euler_with(time=lambda k, n: k / max(n - 1, 1)), "linear flow.*steps start"),
    "h forgotten in the determinant": (euler_with(scale=lambda n: 1.0), "linear flow"),
    "sign of a volume": (without_abs, "nan.*no sign"),
    "log of the determinant": (log_of_the_determinant, "nan.*no sign"),
    "sampling steps": (decoding, "linear flow"),
    "no constant": (euler_with(base=lambda x: -(x**2).sum(1) / 2), "linear flow"),
    "one number": (lambda v, x, n: euler_log_prob(v, x, n).mean(), "shape"),
}

EXERCISES = {
    "pixel_bits": (td.check.pixel_bits, [pixel_bits, pixel_bits_by_library], PIXEL_MUTANTS),
    "linear_flow_log_prob": (
        td.check.linear_flow_log_prob,
        [linear_flow_log_prob, linear_flow_by_determinant, linear_flow_by_covariance],
        LINEAR_MUTANTS,
    ),
    "trace_estimate": (td.check.trace_estimate, [trace_estimate, trace_estimate_backward], TRACE_MUTANTS),
    "euler_log_prob": (td.check.euler_log_prob, [euler_log_prob, euler_log_prob_by_vmap], EULER_MUTANTS),
}
