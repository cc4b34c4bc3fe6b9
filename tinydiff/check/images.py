"""Checks of exercises 11: overlap, receptive fields, GroupNorm, sinusoids, skips. Each by another computation."""

import math
from collections.abc import Callable
from numbers import Integral

import torch
import torch.nn.functional as F

from tinydiff.check.core import call, fail, is_close, is_tensor_like, right
from tinydiff.models.unet import Stage, UNet

EACH = "one number an image: sum over its height and width only, not over the batch"
UNION = "pixels in either, each counted once; what both hold is in the sum of the two areas twice"
EMPTY = "nothing found where there is nothing is a perfect answer: 0 / 0 must become 1"
ONE_NUMBER = "pixels along one side: one int"
GROWTH = (
    "a layer of kernel k looks at k neighbours of the map below it. How far apart are those neighbours in pixels of "
    "the input? Strides before it multiply"
)
BEFORE = "a stride moves the layers after it apart, not the layer itself"
STATISTICS = (
    "one mean and one variance for each image and each group of neighbouring channels, over channels and pixels"
)
BATCH = "an image must not see the others: no statistics over the batch, or it is drawn otherwise alone"
BIASED = "the variance divides by the number of values, not by one less"
EPS = "divide by sqrt(var + eps), with eps inside the root: flat images give 0, not NaN"
NEIGHBOURS = "the first group is the first c / groups channels, side by side"
ORDER = "cosines first, then sines: two halves, not in turns (DDPM's own code has the sines first)"
FREQUENCIES = "frequencies are 10000^(-k / half) for k = 0 ... half - 1: from 1 down, never quite to 1 / 10000"
COUNT = "each resolution has one block more on the way up than on the way down: `blocks` + 1"
LAST_IN = "the map that was saved last is used first"
RUNS = "the decoder runs from the lowest resolution up"
JOINED = "the skip's channels are joined to those from below: both counts add"
BELOW = "the first block of a resolution still has the channels of the resolution below: it is what changes them"
ASKED = "what goes into a block is asked for, not what comes out of it"
SAVED = (
    "what is saved on the way down: the first convolution's map, each block's, and each halved map (which still has "
    "the channels of the resolution above)"
)
LIST = "return a list of whole numbers, one for each block of the decoder in the order in which they run"


def iou(fn: Callable) -> None:
    """Exercise 1: fn(pred, mask) -> (b,) float32, intersection over union of (b, h, w) boolean maps."""
    name = "iou"
    g = torch.Generator().manual_seed(0)
    pred, mask = (torch.rand(5, 6, 7, generator=g) < p for p in (0.3, 0.5))
    out = call(name, fn, pred, mask)
    is_tensor_like(name, "the overlap", out, torch.empty(5), EACH)
    one, none = torch.ones(5), torch.zeros(5)
    is_close(name, "a map and itself: 1", "5 random maps", call(name, fn, mask, mask), one, UNION)
    is_close(name, "a map and its opposite: 0", "5 random maps", call(name, fn, mask, ~mask), none, UNION)
    left, top = torch.zeros(1, 4, 4, dtype=torch.bool), torch.zeros(1, 4, 4, dtype=torch.bool)
    left[:, :, :2], top[:, :2] = True, True
    halves = call(name, fn, left, top)
    given = "the left and the upper half of an image"
    is_close(name, "4 pixels of 12", given, halves, torch.tensor([1 / 3]), UNION)
    want = []
    for p, m in zip(pred.flatten(1).tolist(), mask.flatten(1).tolist(), strict=True):
        a, b = ({i for i, v in enumerate(s) if v} for s in (p, m))
        want.append(len(a & b) / len(a | b))
    is_close(name, "shared pixels over pixels in either", "5 random maps", out, torch.tensor(want), EACH)
    empty = torch.zeros(2, 3, 3, dtype=torch.bool)
    is_close(name, "two empty maps agree: 1", "no pixel in either", call(name, fn, empty, empty), torch.ones(2), EMPTY)
    right(name, 5)


def receptive_field(fn: Callable) -> None:
    """Exercise 2: fn(layers) -> pixels along a side that one output sees; layers are (kernel, stride), in order."""
    name = "receptive_field"
    for layers in (
        [(3, 1)],
        [(3, 1)] * 12,
        [(3, 2), (3, 1)],
        [(3, 1), (3, 1), (2, 2), (3, 1), (3, 1), (2, 2), (3, 1), (3, 1)],
        [(4, 2), (1, 1), (5, 3), (3, 1)],
        [],
    ):
        out = call(name, fn, list(layers))
        given = f"layers = {layers}"
        if not isinstance(out, Integral):
            fail(name, "a whole number comes back", given, f"{out!r}", ONE_NUMBER)
        want = _seen(layers)
        if int(out) != want:
            own = 1 + sum((k - 1) * math.prod(s for _, s in layers[: i + 1]) for i, (k, _) in enumerate(layers))
            hint = BEFORE if int(out) == own else GROWTH
            prop = f"{want} pixels have a gradient (measured on such a stack)"
            fail(name, prop, given, f"{int(out)}", hint)
    right(name, 2)


def _seen(layers: list[tuple[int, int]]) -> int:
    """Measured: how many inputs of a stack of convolutions in one dimension have a gradient at its one output."""
    side = 1
    for kernel, stride in reversed(layers):
        side = (side - 1) * stride + kernel
    x = torch.ones(1, 1, side + 10, dtype=torch.float64, requires_grad=True)  # with some to spare
    h = x
    for kernel, stride in layers:
        h = F.conv1d(h, torch.ones(1, 1, kernel, dtype=torch.float64), stride=stride)
    (gradient,) = torch.autograd.grad(h[0, 0, 0], x)
    return int((gradient != 0).sum())


def group_norm(fn: Callable) -> None:
    """Exercise 3: fn(x, groups, eps) -> x of (b, c, h, w) with mean 0 and variance 1 in each image and group."""
    name = "group_norm"
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4, 6, 3, 5, generator=g, dtype=torch.float64) * torch.arange(1, 7).view(1, 6, 1, 1)
    x = x + torch.arange(24.0, dtype=torch.float64).view(4, 6, 1, 1)
    for groups in (2, 3, 1, 6):
        given = f"x of shape (4, 6, 3, 5), groups = {groups}, eps = 1e-5"
        out = call(name, fn, x, groups, 1e-5)
        is_tensor_like(name, "the normalised map", out, x, "the shape of x comes back: undo the reshape at the end")
        parts = out.unflatten(1, (groups, -1)).flatten(2)
        zero, one = torch.zeros(4, groups, dtype=torch.float64), torch.ones(4, groups, dtype=torch.float64)
        alone = torch.cat([call(name, fn, x[i : i + 1], groups, 1e-5) for i in range(4)])
        is_close(name, "an image alone is as it is in a batch", given, alone, out, BATCH, 1e-9)
        hint = STATISTICS if groups in (1, 6) else f"{STATISTICS}; {NEIGHBOURS}"
        is_close(name, "each group of each image has mean 0", given, parts.mean(2), zero, hint, 1e-9)
        var, n = parts.var(2, correction=0), parts.shape[2]
        low = ((var - 1) * n + 1).abs().max() < 0.05
        is_close(name, "each group of each image has variance 1", given, var, one, BIASED if low else hint, 1e-4)
        ratio = (out.std((2, 3)) / x.std((2, 3))).unflatten(1, (groups, -1)).flatten(0, 1)
        prop = "all channels of a group are divided by one number"
        is_close(name, prop, given, ratio, ratio[:, :1].expand_as(ratio), hint, 1e-9)
    small = 1e-3 * x[:1]
    want = F.group_norm(small, 2, eps=1e-5)
    given = "x a thousand times smaller, where eps counts"
    is_close(name, "eps is added to the variance", given, call(name, fn, small, 2, 1e-5), want, EPS, 1e-9)
    large = F.group_norm(x, 2, eps=10.0)
    is_close(name, "eps is the one that is given", "x, eps = 10", call(name, fn, x, 2, 10.0), large, EPS, 1e-9)
    flat = torch.full((1, 6, 3, 5), 7.0, dtype=torch.float64)
    is_close(name, "a flat image becomes 0", "x = 7", call(name, fn, flat, 2, 1e-5), torch.zeros_like(flat), EPS)
    right(name, 7)


def noise_embedding(fn: Callable) -> None:
    """Exercise 4: fn(t, width) -> (b, width): cosines, then sines, of t at frequencies from 1 down."""
    name = "noise_embedding"
    t = torch.tensor([0.0, 1.0, 10.0, 250.5, 1000.0])
    for width in (8, 32):
        half, given = width // 2, f"t = {t.tolist()}, width = {width}"
        out = call(name, fn, t, width)
        is_tensor_like(name, "the embedding", out, torch.empty(5, width), "one row a number, in float32 like t")
        cos, sin = out[:, :half], out[:, half:]
        one, zero = torch.ones(half), torch.zeros(half)
        is_close(name, "at t = 0 the first half is 1", given, cos[0], one, ORDER)
        is_close(name, "at t = 0 the second half is 0", given, sin[0], zero, ORDER)
        is_close(name, "cos^2 + sin^2 = 1 in each pair", given, cos**2 + sin**2, torch.ones(5, half), ORDER, 1e-5)
        frequency = torch.atan2(sin[1], cos[1])  # the angles at t = 1
        is_close(name, "the first frequency is 1", given, frequency[:1], torch.ones(1), FREQUENCIES, 1e-5)
        ratios = frequency[1:] / frequency[:-1]
        prop = "each frequency is the one before times 10000^(-1 / half)"
        is_close(name, prop, given, ratios, torch.full((half - 1,), 10_000 ** (-1 / half)), FREQUENCIES, 1e-3)
        angles = t[:, None].double() * 10_000.0 ** (-torch.arange(half).double() / half)
        is_close(name, "the angles are t times the frequencies", given, cos.double(), angles.cos(), FREQUENCIES, 1e-3)
    right(name, 5)


def decoder_channels(fn: Callable) -> None:
    """Exercise 5: fn(width, mults, blocks) -> the channels that go into each residual block of the decoder."""
    name = "decoder_channels"
    cases = ((8, (1, 2), 1), (8, (1,), 1), (16, (1, 2, 4), 1), (8, (1, 2, 3), 2), (8, (2, 1, 1, 4), 3))
    for width, mults, blocks in (*cases, (128, (1, 2, 2, 2), 2)):
        out = call(name, fn, width, mults, blocks)
        given = f"width = {width}, mults = {mults}, blocks = {blocks}"
        if not isinstance(out, list) or not all(isinstance(v, Integral) for v in out):
            fail(name, "a list of whole numbers comes back", given, f"{out!r}"[:80], LIST)
        below, skips, own = _channels(width, mults, blocks)
        want = _sums(below, skips)
        if len(out) != len(want):
            fail(name, f"the decoder has {len(want)} blocks", given, f"{len(out)} numbers", COUNT)
        wrong = next((i for i, (a, b) in enumerate(zip(out, want, strict=True)) if int(a) != b), None)
        if wrong is not None:
            prop = f"block {wrong} of {len(want)} takes {want[wrong]} channels (read off td.models.UNet)"
            hints = (
                (below, JOINED),
                (own, ASKED),
                (want[::-1], RUNS),
                (_sums(below, skips[::-1]), LAST_IN),
                (_sums(own, skips), BELOW),
            )
            hint = next((told for mistake, told in hints if out == mistake), f"{LAST_IN}. {SAVED}")
            fail(name, prop, given, f"{int(out[wrong])} in {[int(v) for v in out]}", hint)
    right(name, 2)


def _sums(a: list[int], b: list[int]) -> list[int]:
    return [x + y for x, y in zip(a, b, strict=True)]


def _channels(width: int, mults: tuple[int, ...], blocks: int) -> tuple[list[int], list[int], list[int]]:
    """Read off a network: of each block of the decoder the channels from below, by the skip, and its own."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        net = UNet(width=width, mults=mults, blocks=blocks, attention=(False,) * len(mults))
    convs = [module.block.conv1 for module in net.up if isinstance(module, Stage)]
    own = [conv.out_channels for conv in convs]
    below = [mults[-1] * width, *own[:-1]]
    return below, [conv.in_channels - c for conv, c in zip(convs, below, strict=True)], own
