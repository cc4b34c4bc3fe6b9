"""What all checks share: how a solution is called, compared, and told what is wrong with it.

A message says which property failed, on which input, what came, what was expected to hold, and the usual cause. It
never says the answer. Statistical checks are two-sided at 5 standard errors (6 in 10 million for each comparison, so
fewer than one right solution in 10,000 is turned away by bad luck) with fixed seeds: one that passes always passes.
"""

import traceback
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

STANDARD_ERRORS = 5.0
COLUMN = "a (b,) coefficient must become (b, 1) before it multiplies a (b, d) tensor"


class CheckFailed(AssertionError):
    """A solution is not right yet. Jupyter shows the message alone, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


def fail(name: str, prop: str, given: str, came: Any, hint: str) -> NoReturn:
    """Raises CheckFailed in the words that all checks use."""
    raise CheckFailed(
        f"{name} is not right yet.\n  expected:  {prop}\n  input:     {given}\n  came:      {came}\n  hint:      {hint}"
    )


def right(name: str, properties: int) -> None:
    """The one fixed line of a right solution."""
    print(f"{name}: right, {properties} properties hold.")


def call(name: str, fn: Callable, *args: Any) -> Any:
    """fn(*args). Raises CheckFailed if it is still the stub, raises an error, or changes its inputs."""
    before = [a.clone() if isinstance(a, Tensor) else a for a in args]
    try:
        out = fn(*args)
    except NotImplementedError:
        raise CheckFailed(
            f"{name} is not written yet: put your code in place of `raise NotImplementedError`."
        ) from None
    except Exception as error:  # any of the learner's own, told in one line with the line that raised it
        line = traceback.extract_tb(error.__traceback__)[-1]
        came = f"{type(error).__name__}: {error}, from the line `{line.line}`"
        given = ", ".join(f"shape {tuple(a.shape)}" if isinstance(a, Tensor) else f"{a!r}" for a in args)
        fail(name, "the function runs", given, came, "a size that does not match is often a (b,) that should be (b, 1)")
    for was, now in zip(before, args, strict=True):
        if isinstance(was, Tensor) and not torch.equal(was, now):
            fail(
                name,
                "the inputs are left as they were",
                "any",
                "an input that was changed in place",
                "avoid +=, *= and x[...] = on an argument",
            )
    return out


def is_tensor_like(name: str, what: str, out: Any, like: Tensor, hint: str = COLUMN) -> None:
    """Shape and dtype come first: the rest would only confuse."""
    if not isinstance(out, Tensor):
        fail(name, f"{what} is a tensor", "any", type(out).__name__, "return what the signature says, in its order")
    if out.shape != like.shape:
        fail(
            name,
            f"{what} has shape {tuple(like.shape)}",
            "any",
            f"shape {tuple(out.shape)}",
            hint,
        )
    if out.dtype != like.dtype:
        fail(
            name,
            f"{what} has dtype {like.dtype}",
            "any",
            out.dtype,
            "coefficients are converted to the dtype of the data; what is asked for in float64 is made in float64",
        )


def is_close(name: str, prop: str, given: str, out: Tensor, want: Tensor, hint: str, tol: float = 1e-6) -> None:
    """Largest difference at most tol, relative to values above 1. `out` may be smaller than `want` and broadcast."""
    if not isinstance(out, Tensor) or not _broadcasts(out, want):
        came = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
        fail(name, prop, given, came, COLUMN)
    out, want = out.expand_as(want).flatten(), want.flatten()
    gap = (out - want).abs() / want.abs().clamp(min=1)
    worst = gap.nan_to_num(torch.inf).argmax()
    if not gap[worst] <= tol:
        fail(
            name,
            prop,
            given,
            f"{out[worst].item():.6g} where {want[worst].item():.6g} was due (entry {worst} of {len(out)})",
            hint,
        )


def has_moments(name: str, what: str, given: str, draws: Tensor, mean: float, std: float, hint: str) -> None:
    """The draws (n,) have this mean and standard deviation, and a Gaussian's fourth moment."""
    n = len(draws)
    for moment, came, expected, error in (
        ("mean", draws.mean(), mean, std / n**0.5),
        ("standard deviation", draws.std(), std, std / (2 * n) ** 0.5),
        ("kurtosis", ((draws - draws.mean()) ** 4).mean() / draws.var() ** 2, 3.0, (24 / n) ** 0.5),
    ):
        if not abs(came.item() - expected) <= STANDARD_ERRORS * error + 1e-7:
            fail(
                name,
                f"{what} has {moment} {expected:.4f} (to {STANDARD_ERRORS * error:.4f})",
                given,
                f"{came.item():.4f}",
                hint,
            )


def _broadcasts(out: Tensor, want: Tensor) -> bool:
    try:
        return torch.broadcast_shapes(out.shape, want.shape) == want.shape
    except RuntimeError:
        return False
