"""Checks of exercises 14: patches, places, the cost of a block, attention, adaLN-single.

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
EACH_TOKEN = (
    "a linear layer from a to b numbers costs a * b for each token: queries, keys and values, the layer after "
    "attention, and the two of the MLP, which is four times as wide inside"
)
PAIRS = "scores: each token asks each other with vectors of the width; the weighted mean of the values costs as much"
CONDITION = "six vectors are made from one condition, once an image, not once a token"
WHOLE = "biases, norms and activations are not counted, and what comes back is one whole number (int)"
HEADS = (
    "head number k has the channels k d / heads ... (k + 1) d / heads of q, k and v, and of the result: side by side"
)
SCALE = "scores are divided by the root of a head's width, d / heads, not of d"
SOFTMAX = "for each query the weights of all keys sum to 1: softmax over the keys, the last axis of (queries, keys)"
NO_MIX = "heads do not hear each other: the scores of each come from its own channels alone"
SIX = "shift, scale and gate of attention, then shift, scale and gate of the MLP: split the sum along axis 1, in order"
ONE_PLUS = "a scale of 0 leaves what it scales as it is: (1 + scale)"
NORMED = "each branch hears the normalised tokens, without learned scale and shift, eps 1e-6, over the last axis"
OUTSIDE = "the gate multiplies what the branch says, after it; x itself goes by untouched"
SECOND = "the MLP hears what came of the attention branch, not the tokens from before it"
TABLE = "vectors = shared + table, for each image: (b, 6, d) plus (6, d)"


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
        is_close(name, "sine^2 + cosine^2 = 1", given, size, torch.ones(2, quarter, dtype=F64), QUARTERS, 1e-9)
        table = dit.positions(6, width).double()  # float32
        for (row, column), out in at.items():
            given, due = f"row = {row}, column = {column}, width = {width}", table[6 * row + column]
            is_close(name, "the frequencies fall from 1 in equal ratios", given, out, due, FREQUENCIES, 1e-5)
    right(name, 5)


def block_macs(fn: Callable) -> None:
    """Exercise 3: fn(tokens, width) -> multiply-accumulates of an adaLN-Zero block for one image."""
    name = "block_macs"

    def counted(n: int, d: int) -> int:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            return cost.macs(dit.AdaLNZeroBlock(d, 4), torch.empty(1, n, d), torch.empty(1, 1, d))

    outs = {(n, d): call(name, fn, n, d) for n, d in ((1, 8), (2, 8), (3, 8), (16, 64), (256, 1152))}
    for (n, d), out in outs.items():
        if isinstance(out, bool) or not isinstance(out, int):
            given = f"tokens = {n}, width = {d}"
            fail(name, "a whole number comes back", given, f"{type(out).__name__} {out}", WHOLE)
    # as a polynomial in the tokens: what each term is for is told apart
    one, two, three = (outs[n, 8] for n in (1, 2, 3))
    square = (three - 2 * two + one) // 2
    each = two - one - 3 * square
    rest = one - each - square
    given = "width = 8, tokens = 1, 2, 3"
    for what, came, due, hint in (
        ("what grows with the square of the tokens", square, 2 * 8, PAIRS),
        ("what grows with the tokens", each, 12 * 64, EACH_TOKEN),
        ("what does not depend on the tokens", rest, 6 * 64, CONDITION),
    ):
        if came != due:
            prop, came = (
                f"{what} is what the layers need",
                "more than they need" if came > due else "less than they need",
            )
            fail(name, prop, given, came, hint)
    for (n, d), out in outs.items():
        due = counted(n, d)
        if out != due:
            prop, given = "the count is that of the library's block", f"tokens = {n}, width = {d}"
            fail(name, prop, given, f"{out / due:.4f} times as many", EACH_TOKEN)
    right(name, 4)


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
    alone = call(name, fn, q[..., :4], k[..., :4], v[..., :4], 1)
    first = call(name, fn, q, k, v, 3)[..., :4]
    given = "width 12 in 3 heads, and the first 4 channels alone in one"
    is_close(name, "the first head is attention among its own channels", given, first, alone, HEADS, 1e-9)
    for heads in (1, 2, 4):
        layer = _attention_without_layers(8, heads)
        x = draw(2, 6, 8)
        out, due = call(name, fn, x, x, x, heads), layer(x).detach()
        given = f"q = k = v of (2, 6, 8), heads = {heads}"
        is_close(name, "it agrees with the library's attention", given, out, due, SCALE, 1e-9)
    right(name, 4)


def _attention_without_layers(width: int, heads: int) -> nn.Module:
    """The library's self-attention with q = k = v = x, and nothing after it."""
    with torch.random.fork_rng(devices=[]):
        layer = dit.Attention(width, heads).double()
    eye = torch.eye(width, dtype=F64)
    with torch.no_grad():
        layer.qkv.weight.copy_(torch.cat([eye, eye, eye]))
        layer.out.weight.copy_(eye)
    return layer


def adaln_single(fn: Callable) -> None:
    """Exercise 5: fn(x, shared, table, attention, mlp), x of (b, n, d), shared of (b, 6, d), table of (6, d)."""
    name, g = "adaln_single", torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=F64)

    b, n, d = 3, 5, 8
    x, zero_shared, zero_table = draw(b, n, d), torch.zeros(b, 6, d, dtype=F64), torch.zeros(6, d, dtype=F64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block = dit.AdaLNZeroBlock(d, 2).double()
    block.requires_grad_(False)
    parts = (block.attention, block.mlp)
    given = "shared = 0, table = 0"
    out = call(name, fn, x, zero_shared, zero_table, *parts)
    is_tensor_like(name, "what comes back", out, x, "as many tokens as came in, of the same width")
    is_close(name, "with gates of 0 the block is the identity", given, out, x, OUTSIDE, 1e-12)

    def normalised(x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, (d,), eps=1e-6)

    def gated(*rows: int) -> Tensor:
        table = zero_table.clone()
        table[list(rows)] = 1
        return table

    def identity(x: Tensor) -> Tensor:
        return x

    first = call(name, fn, x, zero_shared, gated(2), identity, identity)
    given = "gate of attention 1, all else 0, branches that pass on what they hear"
    is_close(name, "the first branch adds the normalised tokens", given, first, x + normalised(x), NORMED, 1e-9)
    last = call(name, fn, x, zero_shared, gated(5), identity, identity)
    given = "gate of the MLP 1, all else 0, branches that pass on what they hear"
    is_close(name, "the second branch adds the normalised tokens", given, last, x + normalised(x), SIX, 1e-9)
    both = call(name, fn, x, zero_shared, gated(2, 5), identity, identity)
    due = x + normalised(x)
    prop, given = "the MLP hears what came of attention", "both gates 1, all else 0"
    is_close(name, prop, given, both, due + normalised(due), SECOND, 1e-9)
    scaled = call(name, fn, x, zero_shared, gated(1, 2), identity, identity)
    given = "scale and gate of attention 1, all else 0"
    is_close(name, "a scale of 1 doubles what is heard", given, scaled, x + 2 * normalised(x), ONE_PLUS, 1e-9)
    shared, table = draw(b, 6, d), draw(6, d)
    out = call(name, fn, x, shared, table, *parts)
    given = f"random x of {(b, n, d)}, shared of {(b, 6, d)}, table of {(6, d)}, the library's attention and MLP"
    for i in range(b):  # each image by the library's block, the six vectors as biases of its layer
        block.adaln[1].bias.copy_((shared[i] + table).flatten())
        due = block(x[i : i + 1], torch.zeros(1, 1, d, dtype=F64))
        prop = f"image {i} is what the library's block makes of it with the vectors shared + table"
        is_close(name, prop, given, out[i : i + 1], due, f"{TABLE}; {SIX}", 1e-9)
    right(name, 6)
