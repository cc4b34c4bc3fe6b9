"""What all checks share: how a solution is called, compared, and told what is wrong with it.

A message says which property failed, on which input, what came, what was expected to hold, and the usual cause. It
never says the answer. Statistical checks are two-sided at 5 standard errors (6 in 10 million for each comparison, so
fewer than one right solution in 10,000 is turned away by bad luck) with fixed seeds: one that passes always passes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

STANDARD_ERRORS = 5.0


class CheckFailed(AssertionError):
    """A solution is not right yet. Jupyter shows the message alone, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


def fail(name: str, prop: str, given: str, came: Any, hint: str) -> None:
    """Raises CheckFailed in the words that all checks use."""
    raise CheckFailed(
        f"{name} is not right yet.\n  expected:  {prop}\n  input:     {given}\n  came:      {came}\n  hint:      {hint}"
    )


def right(name: str, properties: int) -> None:
    """The one fixed line of a right solution."""
    print(f"{name}: right, {properties} properties hold.")


def call(name: str, fn: Callable, *args: Any) -> Any:
    """fn(*args). Raises CheckFailed if it is still the stub or changes its inputs; other errors are left to be seen."""
    before = [a.clone() if isinstance(a, Tensor) else a for a in args]
    try:
        out = fn(*args)
    except NotImplementedError:
        raise CheckFailed(
            f"{name} is not written yet: put your code in place of `raise NotImplementedError`."
        ) from None
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


def is_tensor_like(name: str, what: str, out: Any, like: Tensor) -> None:
    """Shape and dtype come first: the rest would only confuse."""
    if not isinstance(out, Tensor):
        fail(name, f"{what} is a tensor", "any", type(out).__name__, "return what the signature says, in its order")
    if out.shape != like.shape:
        fail(
            name,
            f"{what} has shape {tuple(like.shape)}",
            f"x of shape {tuple(like.shape)}",
            f"shape {tuple(out.shape)}",
            "a (b,) coefficient must become (b, 1) before it multiplies a (b, d) tensor",
        )
    if out.dtype != like.dtype:
        fail(
            name,
            f"{what} has dtype {like.dtype}, like the input",
            f"x of dtype {like.dtype}",
            out.dtype,
            "convert the coefficients, not the data",
        )


def is_close(name: str, prop: str, given: str, out: Tensor, want: Tensor, hint: str, tol: float = 1e-6) -> None:
    """Largest difference at most tol, relative to values above 1."""
    gap = ((out - want).abs() / want.abs().clamp(min=1)).max().item()
    if not gap <= tol:
        fail(name, prop, given, f"{_short(out)}, off by {gap:.3g}", hint)


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


def _short(out: Tensor) -> str:
    values = [f"{v:.5g}" for v in out.flatten()[:3].tolist()]
    return ", ".join(values) + (", ..." if out.numel() > 3 else "")
