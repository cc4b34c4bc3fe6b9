"""Binomial diffusion: bits that are erased one by one (Sohl-Dickstein et al. 2015, table 1 and section 2.2).

The forward step leaves a bit as it is with probability 1 - beta_k and else draws it anew; with beta_k = 1 / (T - k + 1)
1 / T of the signal goes at each step. The product of (1 - beta) up to step k is 1 - k / T: in time t = k / T,

    (1)  P(x_t = 1 | x_s) = rho x_s + (1 - rho) / 2,     rho = (1 - t) / (1 - s)

whatever T. Bayes' rule on the two states of a bit gives its posterior q(x_s | x_t, x0), and the best reverse step that
treats bits apart mixes the two posteriors by the belief b = P(x0 = 1 | x_t):

    (2)  p(x_s = 1 | x_t) = b q(x_s = 1 | x_t, x0 = 1) + (1 - b) q(x_s = 1 | x_t, x0 = 0)

Bits are 0.0 and 1.0 in tensors (b, bits); a `Believer` is a function (x, t) -> (b, bits) of probabilities, with t one
number. Unit: bits of information of a whole sequence.
"""

import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

Believer = Callable[[Tensor, float], Tensor]


def heartbeat(length: int = 20, period: int = 5) -> Float[Tensor, "period length"]:
    """All sequences with a 1 every `period` bits, one for each phase: the paper's toy of equal probabilities."""
    if not 1 <= period <= length:
        raise ValueError(f"period must be from 1 to length = {length}; got {period}")
    return (torch.arange(length) % period == torch.arange(period)[:, None]).double()


def chance_of_one(x_s: Tensor, t: float, s: float = 0.0) -> Tensor:
    """P(x_t = 1 | x_s) of equation (1), for s <= t. x_s may itself be a probability."""
    if not 0 <= s <= t <= 1:
        raise ValueError(f"needs 0 <= s <= t <= 1; got t = {t:g}, s = {s:g}")
    rho = (1 - t) / (1 - s) if t > s else 1.0
    return rho * x_s + (1 - rho) / 2


def add_noise(x_s: Tensor, t: float, s: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
    """A draw of x_t given x_s."""
    return torch.bernoulli(chance_of_one(x_s, t, s), generator=generator)


def step_back(b: Tensor, x_t: Tensor, t: float, s: float) -> Tensor:
    """p(x_s = 1 | x_t) of equation (2), for s < t; with b = x0 it is the posterior q(x_s = 1 | x_t, x0)."""
    if not 0 <= s < t <= 1:
        raise ValueError(f"needs 0 <= s < t <= 1; got t = {t:g}, s = {s:g}")
    leads = [_same(x_t, chance_of_one(torch.full_like(x_t, v), t, s)) for v in (0.0, 1.0)]  # q(x_t | x_s = v)

    def given(x0: float) -> Tensor:  # Bayes
        one = chance_of_one(torch.full_like(x_t, x0), s)
        return leads[1] * one / (leads[1] * one + leads[0] * (1 - one))

    return b * given(1.0) + (1 - b) * given(0.0)


def _same(x: Tensor, p: Tensor) -> Tensor:
    """The probability of x, if 1 has probability p."""
    return x * p + (1 - x) * (1 - p)


def bernoulli_kl(q: Tensor, p: Tensor) -> Tensor:
    """KL of Bernoulli(q) from Bernoulli(p), element by element, in bits; 0 log 0 = 0."""
    return (torch.xlogy(q, q) - torch.xlogy(q, p) + torch.xlogy(1 - q, 1 - q) - torch.xlogy(1 - q, 1 - p)) / math.log(2)


class ExactBelief:
    """P(x0 = 1 | x_t) of each bit when x0 is one of finitely many sequences: Bayes over them.

    Args:
        sequences: (k, bits) of 0 and 1. weights: (k,), positive; None means equal.
    """

    def __init__(self, sequences: Float[Tensor, "k bits"], weights: Float[Tensor, " k"] | None = None) -> None:
        if not ((sequences == 0) | (sequences == 1)).all():
            raise ValueError("sequences must hold 0 and 1 only")
        self.sequences = sequences
        self.weights = torch.ones(len(sequences), dtype=sequences.dtype) if weights is None else weights

    def __call__(self, x: Float[Tensor, "b bits"], t: float) -> Float[Tensor, "b bits"]:
        p = chance_of_one(self.sequences, t)  # (k, bits)
        log_joint = torch.xlogy(x[:, None], p) + torch.xlogy(1 - x[:, None], 1 - p)  # (b, k, bits)
        posterior = (log_joint.sum(-1) + self.weights.log()).softmax(1)
        return posterior @ self.sequences


class NetBelief(nn.Module):
    """A network's belief: the odds that the bit itself gives, times what the network reads in all of them.

    Args:
        net: called as net(2 x - 1, 1000 t) -> (b, bits) of log-odds.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def logits(self, x: Tensor, t: Tensor) -> Tensor:
        """Log-odds (b, bits) for t (b,) in (0, 1]."""
        own = ((2 - t) / t).log()[:, None] * (2 * x - 1)  # log P(x_t | 1) / P(x_t | 0)
        return own + self.net((2 * x - 1), 1000 * t)

    def __call__(self, x: Tensor, t: float) -> Tensor:
        with torch.no_grad():
            return self.logits(x, torch.full((len(x),), t, dtype=x.dtype)).sigmoid()


def belief_loss(
    d: NetBelief, x0: Float[Tensor, "b bits"], t: Float[Tensor, " b"], generator: torch.Generator | None = None
) -> Float[Tensor, " b"]:
    """Cross-entropy of the belief with the clean bits at one draw of x_t, t in (0, 1]; in bits of the sequence."""
    x = torch.bernoulli((1 - t[:, None]) * x0 + t[:, None] / 2, generator=generator)
    return nn.functional.binary_cross_entropy_with_logits(d.logits(x, t), x0, reduction="none").sum(1) / math.log(2)


class BitBound(NamedTuple):
    """K of each sequence in bits, `total`, is first - terms.sum(0).

    Attributes:
        first: (b,), log2 p(x0 | x_1) of the step to the data.
        terms: (n - 1, b), KL of the other steps, from noise on.
    """

    first: Tensor
    terms: Tensor

    @property
    def total(self) -> Float[Tensor, " b"]:
        return self.first - self.terms.sum(0)


def bit_bound(
    believe: Believer,
    x0: Float[Tensor, "b bits"],
    ts: Iterable[float],
    *,
    fixed_first: bool = True,
    generator: torch.Generator | None = None,
) -> BitBound:
    """K <= E log2 p(x0) (their eq. 14) along decreasing times from 1 to 0, each term at its own draw of x_t.

    Args:
        fixed_first: the step to the data is not learned but the forward step turned round, as in the paper: then
            `first` is -H(x_1 | x0), exactly. Else it is log2 of the belief at x_1, at one draw.

    Raises ValueError unless ts falls from 1 to 0.
    """
    ts = [float(t) for t in ts]
    if len(ts) < 2 or ts[0] != 1 or ts[-1] != 0 or any(t <= s for t, s in pairwise(ts)):
        raise ValueError(f"ts must fall from 1 to 0; got {ts[:3]} ... {ts[-1:]}")
    terms = [torch.zeros(len(x0), dtype=x0.dtype)]
    for t, s in list(pairwise(ts))[:-1]:
        x = add_noise(x0, t, generator=generator)
        terms.append(bernoulli_kl(step_back(x0, x, t, s), step_back(believe(x, t), x, t, s)).sum(1))
    if fixed_first:
        p = chance_of_one(x0, ts[-2])
        first = (torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)).sum(1) / math.log(2)
    else:
        x = add_noise(x0, ts[-2], generator=generator)
        first = _same(x0, believe(x, ts[-2])).log2().sum(1)
    return BitBound(first, torch.stack(terms))


def sample_bits(
    believe: Believer, shape: tuple[int, int], ts: Iterable[float], generator: torch.Generator | None = None
) -> list[Tensor]:
    """The states from noise at ts[0] = 1 to ts[-1], one for each time: equation (2), step by step."""
    ts = [float(t) for t in ts]
    x = torch.bernoulli(torch.full(shape, 0.5), generator=generator)
    states = [x]
    for t, s in pairwise(ts):
        x = torch.bernoulli(step_back(believe(x, t), x, t, s), generator=generator)
        states.append(x)
    return states
