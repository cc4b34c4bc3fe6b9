"""Checks of exercises 14: patches, places, the cost of a cross-attention block, attention, adaLN-single.

Each compares with another computation: pixels one by one, a property, the counter of the library, its own blocks.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tinydiff.check.core import call, fail, is_close, is_tensor_like, right
from tinydiff.models import cost, dit

F64 = torch.float64
SHAPE = "h / p times w / p tokens, each of p * p * c numbers: (b, tokens, p * p * c)"
ROW_BY_ROW = (
    "patches are taken row by row: the second patch lies to the right of the first, not below it. After view or unfold "
    "into (b, c, h/p, p, w/p, p), the two counts of patches must stand together, rows first, before you flatten"
)
INSIDE = (
    "within a patch: pixel row by pixel row, and for each pixel all its channels, so that the channel runs fastest; it "
    "is the last axis before the flatten"
)
FREQUENCIES = (
    "n = width / 4 frequencies, 10000 ** (-k / n) for k = 0 ... n - 1: they begin at 1, and end before 1 / 10000"
)
QUARTERS = "four quarters: sines of the column, cosines of the column, sines of the row, cosines of the row"
ACROSS = "the first half knows the column alone, and the second half the row alone"
PRECISION = (
    "frequencies, sines and cosines are all made in float64 (torch.arange(..., dtype=torch.float64)); what was made in "
    "float32 stays as rough as that when it is converted"
)
EACH_TOKEN = (
    "a linear layer from a to b numbers costs a * b for each token that goes through it. Patches go through those of "
    "self-attention (queries, keys, values, and the one after it), of cross-attention (queries, and the one after it) "
    "and of the MLP, which is four times as wide inside"
)
PAIRS = "scores: each token asks each other with vectors of the width; the weighted mean of the values costs as much"
ACROSS_PAIRS = "each patch asks each token of the condition: again a score, and a share in a weighted mean of values"
TOLD = "keys and values of cross-attention are made of the condition's tokens, once for each of these, not of patches"
NO_CONSTANT = "no layer is applied once an image: the six vectors are adaLN's, and this block has none"
WHOLE = "biases, norms and activations are not counted, and what comes back is one whole number (int)"
HEADS = (
    "head number k has the channels k d / heads ... (k + 1) d / heads of q, k and v, and of the result: side by side"
)
SCALE = "scores are divided by the root of a head's width, d / heads: not by that of d, nor by the width itself"
SOFTMAX = "for each query the weights of all keys sum to 1: softmax over the keys, the last axis of (queries, keys)"
NO_MIX = "heads do not hear each other: the scores of each are sums over its own channels alone, d / heads of them"
SIX = "shift, scale and gate of attention, then shift, scale and gate of the MLP: split the sum along axis 1, in order"
ONE_PLUS = "a scale of 0 leaves what it scales as it is: (1 + scale)"
NORMED = "each branch hears the normalised tokens: over the last axis, without learned scale and shift"
EPS = "eps is 1e-6, and inside the root with the variance (torch's default is 1e-5)"
OUTSIDE = "the gate multiplies what the branch says, after it; x itself goes by untouched"
KEPT = "the second branch adds to what came of the first: x + gate * attention is the x of the second line"
SECOND = "the MLP hears what came of the attention branch, normalised, not the tokens from before it"
TABLE = "vectors = shared + table, for each image: (b, 6, d) plus (6, d)"
IMAGES = "each image has six vectors of its own, and all its tokens have the same"
CALLED = "both branches are asked, each once"


def patchify(fn: Callable) -> None:
    """Exercise 1: fn(x, p), x of (b, c, h, w) -> (b, tokens, p p c)."""
    name = "patchify"
    for b, c, h, w, p in ((1, 1, 4, 6, 2), (1, 3, 4, 4, 4), (2, 3, 4, 6, 2), (2, 2, 3, 2, 1)):
        x = torch.arange(b * c * h * w, dtype=torch.float32).view(b, c, h, w)
        tokens, length = (h // p) * (w // p), p * p * c
        out = call(name, fn, x, p)
        is_tensor_like(name, "the tokens", out, torch.empty(b, tokens, length), SHAPE)
        given = f"x = 0, 1, 2, ... in shape {(b, c, h, w)}, p = {p}"
        for i in range(tokens):
            top, left = p * (i // (w // p)), p * (i % (w // p))
            patch = x[:, :, top : top + p, left : left + p]
            # which pixels, in any order; then in which order
            mine, due = (v.flatten(1).sort(1).values for v in (out[:, i], patch))
            prop = f"token {i} holds the pixels of the patch with corner ({top}, {left})"
            is_close(name, prop, given, mine, due, ROW_BY_ROW)
            place = torch.empty(b, length)
            for r in range(p):
                for q in range(p):
                    for k in range(c):
                        place[:, (r * p + q) * c + k] = patch[:, k, r, q]
            is_close(name, f"the numbers of token {i} are in order", given, out[:, i], place, INSIDE)
    right(name, 3)


def place(fn: Callable) -> None:
    """Exercise 2: fn(row, column, width) -> (width,), float64: where a patch is."""
    name = "place"
    for width in (4, 12, 64):
        quarter = width // 4
        at = {rc: call(name, fn, *rc, width) for rc in ((0, 0), (0, 3), (2, 3), (2, 0), (5, 3))}
        for out in at.values():
            is_tensor_like(name, "the vector", out, torch.empty(width, dtype=F64), "width numbers, made in float64")
        given = f"row = 0, column = 0, width = {width}"
        zeros, ones = torch.zeros(quarter, dtype=F64), torch.ones(quarter, dtype=F64)
        origin = torch.cat([zeros, ones, zeros, ones])
        is_close(name, "at the origin sines are 0 and cosines 1", given, at[0, 0], origin, QUARTERS, 1e-9)
        half, given = width // 2, f"row = 2, column = 3, width = {width}"
        is_close(name, "row 0 and row 2 agree in the first half", given, at[2, 3][:half], at[0, 3][:half], ACROSS, 1e-9)
        prop = "column 0 and column 3 agree in the second half"
        is_close(name, prop, given, at[2, 3][half:], at[2, 0][half:], ACROSS, 1e-9)
        size = at[2, 3].view(2, 2, quarter).square().sum(1)  # of each frequency's sine and cosine
        is_close(name, "sine^2 + cosine^2 = 1", given, size, torch.ones(2, quarter, dtype=F64), QUARTERS, 1e-4)
        table = dit.positions(6, width).double()  # float32
        for (row, column), out in at.items():
            given, due = f"row = {row}, column = {column}, width = {width}", table[6 * row + column]
            is_close(name, "the frequencies fall from 1 in equal ratios", given, out, due, FREQUENCIES, 1e-5)
        for (row, column), out in at.items():
            angles = [k * 10_000.0 ** (-i / quarter) for k in (column, row) for i in range(quarter)]
            angles = torch.tensor(angles, dtype=F64).view(2, quarter)
            gap = (out - torch.stack([angles.sin(), angles.cos()], dim=1).flatten()).abs().max()
            if not gap < 1e-10:
                given = f"row = {row}, column = {column}, width = {width}"
                fail(name, "the numbers are as exact as float64 is", given, f"an error of {gap:.0e}", PRECISION)
    right(name, 6)


def block_macs(fn: Callable) -> None:
    """Exercise 3: fn(tokens, told, width) -> multiply-accumulates of a cross-attention block for one image."""
    name = "block_macs"

    def counted(n: int, m: int, d: int) -> int:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            return cost.macs(dit.CrossAttentionBlock(d, 4), torch.empty(1, n, d), torch.empty(1, m, d))

    sizes = ((1, 1, 8), (2, 1, 8), (3, 1, 8), (1, 2, 8), (2, 2, 8), (1, 3, 8), (16, 2, 64), (256, 2, 1152))
    outs = {size: call(name, fn, *size) for size in sizes}
    for (n, m, d), out in outs.items():
        if isinstance(out, bool) or not isinstance(out, int):
            given = f"tokens = {n}, told = {m}, width = {d}"
            fail(name, "a whole number comes back", given, f"{type(out).__name__} {out}", WHOLE)
    # as a polynomial in both numbers of tokens: what each term is for is told apart
    f = {(n, m): out for (n, m, d), out in outs.items() if d == 8}
    square = (f[3, 1] - 2 * f[2, 1] + f[1, 1]) // 2
    cross = f[2, 2] - f[2, 1] - f[1, 2] + f[1, 1]
    among = (f[1, 3] - 2 * f[1, 2] + f[1, 1]) // 2
    each_told = f[1, 2] - f[1, 1] - cross - 3 * among
    each = f[2, 1] - f[1, 1] - cross - 3 * square
    rest = f[1, 1] - square - cross - among - each_told - each
    given = "width = 8, tokens = 1, 2, 3, told = 1, 2, 3"
    for what, came, due, hint in (
        ("what grows with the square of the patches' tokens", square, 2 * 8, PAIRS),
        ("what grows with both numbers of tokens at once", cross, 2 * 8, ACROSS_PAIRS),
        ("what grows with the square of the condition's tokens", among, 0, ACROSS_PAIRS),
        ("what grows with the condition's tokens", each_told, 2 * 64, TOLD),
        ("what grows with the patches' tokens", each, 14 * 64, EACH_TOKEN),
        ("what depends on neither number of tokens", rest, 0, NO_CONSTANT),
    ):
        if came != due:
            prop = f"{what} is what the layers need"
            fail(name, prop, given, "more than they need" if came > due else "less than they need", hint)
    for (n, m, d), out in outs.items():
        due = counted(n, m, d)
        if out != due:
            prop, given = "the count is that of the library's block", f"tokens = {n}, told = {m}, width = {d}"
            fail(name, prop, given, f"{out / due:.4f} times as many", EACH_TOKEN)
    right(name, 5)


def attend(fn: Callable) -> None:
    """Exercise 4: fn(q, k, v, heads), q of (b, n, d), k and v of (b, m, d) -> (b, n, d)."""
    name, g = "attend", torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=F64)

    q, k, v = draw(2, 5, 12), draw(2, 3, 12), draw(2, 3, 12)
    for heads in (1, 3):
        given = f"q of (2, 5, 12), k and v of (2, 3, 12), heads = {heads}"
        out = call(name, fn, q, k, v, heads)
        is_tensor_like(name, "what comes back", out, q, "as many rows as queries, as wide as the values")
        same = call(name, fn, q, k, torch.ones_like(v), heads)
        is_close(name, "if all values are 1, so is the answer", given, same, torch.ones_like(q), SOFTMAX, 1e-9)
        order = [2, 0, 1]
        moved = call(name, fn, q, k[:, order], v[:, order], heads)
        is_close(name, "the order of the keys does not matter", given, moved, out, SOFTMAX, 1e-9)
    # all channels alike, so that it does not matter which of them belong to a head: only their number and the scale do
    flat_q, flat_k, flat_v = (u[..., :1].expand_as(u).contiguous() for u in (q, k, v))

    def flat(factor: float) -> Tensor:
        return (factor * flat_q[..., :1] @ flat_k[..., :1].mT).softmax(2) @ flat_v

    given = "q of (2, 5, 12), k and v of (2, 3, 12), in each all 12 channels alike, heads = 3"
    out = call(name, fn, flat_q, flat_k, flat_v, 3)
    hint = NO_MIX if torch.allclose(out, flat(12**0.5)) else SCALE  # 12 channels in one head, divided by their root
    is_close(name, "scores have the scale of a head", given, out, flat(2.0), hint, 1e-9)  # 4 / sqrt(4)
    alone = call(name, fn, q[..., :4], k[..., :4], v[..., :4], 1)
    first = call(name, fn, q, k, v, 3)[..., :4]
    given = "width 12 in 3 heads, and the first 4 channels alone in one"
    is_close(name, "the first head is attention among its own channels", given, first, alone, HEADS, 1e-9)
    for heads in (1, 2, 4):
        layer = _attention_without_layers(8, heads)
        x = draw(2, 6, 8)
        out, due = call(name, fn, x, x, x, heads), layer(x).detach()
        given = f"q = k = v of (2, 6, 8), heads = {heads}"
        is_close(name, "it agrees with the library's attention", given, out, due, HEADS, 1e-9)
    right(name, 5)


def _attention_without_layers(width: int, heads: int) -> nn.Module:
    """The library's self-attention with q = k = v = x, and nothing after it."""
    with torch.random.fork_rng(devices=[]):
        layer = dit.Attention(width, heads).double()
    eye = torch.eye(width, dtype=F64)
    with torch.no_grad():
        layer.qkv.weight.copy_(torch.cat([eye, eye, eye]))
        layer.out.weight.copy_(eye)
    return layer


class _Branch:
    """A branch that says the same whatever it hears, and keeps what it heard."""

    def __init__(self, said: Tensor) -> None:
        self.said, self.heard = said, None

    def __call__(self, x: Tensor) -> Tensor:
        self.heard = x
        return self.said


def adaln_single(fn: Callable) -> None:
    """Exercise 5: fn(x, shared, table, attention, mlp), x of (b, n, d), shared of (b, 6, d), table of (6, d)."""
    name, g = "adaln_single", torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=F64)

    b, n, d = 3, 5, 8
    x, said, shared, table = draw(b, n, d), draw(2, b, n, d), draw(b, 6, d), draw(6, d)
    zero_shared, zero_table = torch.zeros_like(shared), torch.zeros_like(table)

    def ask(x: Tensor, *ones: int) -> tuple[Tensor, Tensor, Tensor]:
        """What attention and the MLP hear, and what comes back, with these of the six vectors 1, all else 0."""
        vectors, branches = zero_table.clone(), [_Branch(v) for v in said]
        vectors[list(ones)] = 1
        out = call(name, fn, x, zero_shared, vectors, *branches)
        for branch, which in zip(branches, ("attention", "mlp"), strict=True):
            if branch.heard is None:
                fail(name, f"{which} is called", "any", "it was not", CALLED)
        is_tensor_like(name, "what comes back", out, x, "as many tokens as came in, of the same width")
        return branches[0].heard, branches[1].heard, out

    def normalised(x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, (d,), eps=1e-6)

    heard = ask(x)
    given = "shared = 0, table = 0, branches that say something"
    is_close(name, "with gates of 0 the block is the identity", given, heard[2], x, OUTSIDE, 1e-12)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block = dit.AdaLNZeroBlock(d, 2).double()
    block.requires_grad_(False)
    parts = (block.attention, block.mlp)
    here, there = (call(name, fn, x, *v, *parts) for v in ((table.expand_as(shared), zero_table), (zero_shared, table)))
    prop, given = "numbers in the table do what the same numbers in shared do", "one of them random, the other 0"
    is_close(name, prop, given, there, here, TABLE, 1e-9)
    none = call(name, fn, x, table.expand_as(shared), -table, *parts)
    prop, given = "shared and a table that is its negative leave the identity", "random shared, table = -shared"
    is_close(name, prop, given, none, x, TABLE, 1e-9)

    for which, came in zip(("attention", "the MLP"), heard, strict=False):
        hint = ONE_PLUS if not came.any() else NORMED
        prop, given = f"{which} hears the normalised tokens", "shared = 0, table = 0"
        is_close(name, prop, given, came, normalised(x), hint, 1e-3)
    small = 1e-3 * x
    for which, came in zip(("attention", "the MLP"), ask(small), strict=False):
        prop, given = f"{which} hears them normalised with eps", "tokens of size 0.001; shared = 0, table = 0"
        is_close(name, prop, given, came, normalised(small), EPS, 1e-9)

    base = heard[:2]
    for branch, which in ((0, "attention"), (1, "the MLP")):
        for i, what, due in ((0, "shift", base[branch] + 1), (1, "scale", 2 * base[branch])):
            given = f"vector {3 * branch + i}, the {what} of {which}, 1, all else 0"
            came = ask(x, 3 * branch + i)
            prop = f"a {what} of 1 {('adds 1 to', 'doubles')[i]} what {which} hears"
            is_close(name, prop, given, came[branch], due, SIX, 1e-9)
            prop = f"the {what} of {which} is not for the other branch"
            is_close(name, prop, given, came[1 - branch], base[1 - branch], SIX, 1e-9)
    for branch, which in ((0, "attention"), (1, "the MLP")):
        out = ask(x, 3 * branch + 2)[2]
        hint = SIX if torch.allclose(out, x + said[1 - branch]) else KEPT if torch.allclose(out, x) else OUTSIDE
        prop = f"a gate of 1 adds what {which} says"
        given = f"vector {3 * branch + 2}, the gate of {which}, 1, all else 0"
        is_close(name, prop, given, out, x + said[branch], hint, 1e-9)
    prop, given = "the MLP hears what came of attention", "gate of attention 1, all else 0"
    is_close(name, prop, given, ask(x, 2)[1], normalised(x + said[0]), SECOND, 1e-9)

    out = call(name, fn, x, shared, table, *parts)
    given = f"random x of {(b, n, d)}, shared of {(b, 6, d)}, table of {(6, d)}, the library's attention and MLP"
    for i in range(b):  # each image by the library's block, the six vectors as biases of its layer
        block.adaln[1].bias.copy_((shared[i] + table).flatten())
        due = block(x[i : i + 1], torch.zeros(1, 1, d, dtype=F64))
        prop = f"image {i} is what the library's block makes of it with the vectors shared + table"
        is_close(name, prop, given, out[i : i + 1], due, IMAGES, 1e-9)
    right(name, 8)
