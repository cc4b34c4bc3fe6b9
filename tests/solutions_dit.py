"""Solutions of exercises 14, right and wrong, and what a wrong one is told: see test_checks."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange

import tinydiff as td

F64 = torch.float64

# ---- exercise 1 --------------------------------------------------------------------------------------


def patchify(x, p):
    b, c, h, w = x.shape
    x = x.view(b, c, h // p, p, w // p, p)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, (h // p) * (w // p), p * p * c)


def patchify_by_slices(x, p):
    rows = range(0, x.shape[2], p), range(0, x.shape[3], p)
    patches = [x[:, :, i : i + p, j : j + p] for i in rows[0] for j in rows[1]]
    return torch.stack([patch.movedim(1, 3).flatten(1) for patch in patches], dim=1)


def patchify_by_unfold(x, p):
    columns = F.unfold(x, p, stride=p).transpose(1, 2)  # channel slowest
    return columns.unflatten(2, (x.shape[1], p * p)).transpose(2, 3).flatten(2)


def cut(pattern):
    return lambda x, p: rearrange(x, pattern, p=p, q=p)


PATCHIFY_MUTANTS = {
    "columns before rows": (cut("b c (h p) (w q) -> b (w h) (p q c)"), "patch with corner.*row by row"),
    "the pixels of a patch by column": (cut("b c (h p) (w q) -> b (h w) (q p c)"), "are in order"),
    "the channel slowest": (cut("b c (h p) (w q) -> b (h w) (c p q)"), "are in order.*channel runs fastest"),
    "a view alone": (
        lambda x, p: x.reshape(x.shape[0], -1, p * p * x.shape[1]),
        "patch with corner.*row by row",
    ),
    "every other pixel": (cut("b c (p h) (q w) -> b (h w) (p q c)"), "patch with corner"),
    "tokens in the last axis": (lambda x, p: F.unfold(x, p, stride=p), "the tokens has shape"),
    "overlapping": (lambda x, p: F.unfold(x, p, stride=1).transpose(1, 2), "the tokens has shape"),
    "the grid kept": (cut("b c (h p) (w q) -> b h w (p q c)"), "the tokens has shape"),
    "float64": (lambda x, p: patchify(x, p).double(), "dtype"),
}

# ---- exercise 2 --------------------------------------------------------------------------------------


def place(row, column, width):
    n = width // 4
    frequencies = 10_000.0 ** (-torch.arange(n, dtype=F64) / n)
    return torch.cat([f(k * frequencies) for k in (column, row) for f in (torch.sin, torch.cos)])


def place_one_by_one(row, column, width):
    n, out = width // 4, [0.0] * width
    for k in range(n):
        for half, at in enumerate((column, row)):
            angle = at * math.exp(-math.log(10_000) * k / n)
            out[2 * n * half + k], out[2 * n * half + n + k] = math.sin(angle), math.cos(angle)
    return torch.tensor(out, dtype=F64)


def place_with(order=("column", "row"), waves=(torch.sin, torch.cos), powers=None, base=10_000.0, dtype=F64):
    def f(row, column, width):
        n, at = width // 4, dict(row=row, column=column)
        k = (powers or (lambda n: torch.arange(n, dtype=F64) / n))(n)
        return torch.cat([f(at[name] * base**-k) for name in order for f in waves]).to(dtype)

    return f


def place_interleaved(row, column, width):
    return place(row, column, width).view(2, 2, -1).transpose(1, 2).flatten()


def place_summed(row, column, width):
    n = width // 2
    frequencies = 10_000.0 ** (-torch.arange(n, dtype=F64) / n)
    return torch.cat([(column * frequencies).sin() + (row * frequencies).sin(), (column * frequencies).cos()])


def place_of_the_index(row, column, width):
    n = width // 2
    angles = (8 * row + column) * 10_000.0 ** (-torch.arange(n, dtype=F64) / n)
    return torch.cat([angles.sin(), angles.cos()])


PLACE_MUTANTS = {
    "row first": (place_with(("row", "column")), "row 0 and row 2 agree in the first half"),
    "cosines first": (place_with(waves=(torch.cos, torch.sin)), "at the origin"),
    "sines and cosines in turn": (place_interleaved, "at the origin|frequencies"),
    "the index of the patch": (place_of_the_index, "at the origin|row 0 and row 2 agree"),
    "row and column added": (place_summed, "at the origin|row 0 and row 2 agree"),
    "width / 2 in the exponent": (
        place_with(powers=lambda n: torch.arange(n, dtype=F64) / (2 * n)),
        "fall from 1 in equal ratios",
    ),
    "ends at 1 / 10,000": (
        place_with(powers=lambda n: torch.linspace(0, 1, n, dtype=F64)),
        "fall from 1 in equal ratios",
    ),
    "another base": (place_with(base=100.0), "fall from 1 in equal ratios"),
    "sines alone": (place_with(waves=(torch.sin, torch.sin)), "at the origin"),
    "float32": (place_with(dtype=torch.float32), "dtype torch.float64"),
    "frequencies in float32, then converted": (
        lambda r, c, w: torch.cat(
            [
                f(k * (10_000 ** (-torch.arange(w // 4) / (w // 4))).double())
                for k in (c, r)
                for f in (torch.sin, torch.cos)
            ]
        ),
        "as exact as float64.*made in",
    ),
    "all in float32, then converted": (
        lambda r, c, w: place_with(powers=lambda n: torch.arange(n) / n, dtype=torch.float32)(r, c, w).double(),
        "as exact as float64.*made in",
    ),
    "half the width": (lambda r, c, w: place(r, c, w // 2) if w > 4 else torch.zeros(2, dtype=F64), "has shape"),
}

# ---- exercise 3 --------------------------------------------------------------------------------------


def block_macs(tokens, told, width):
    layers = 14 * tokens + 2 * told
    return layers * width**2 + 2 * tokens * (tokens + told) * width


def block_macs_by_layer(tokens, told, width):
    square, pairs = width * width, 2 * width
    myself = 4 * square * tokens + pairs * tokens * tokens
    asked = (1 + 1) * square * tokens + 2 * square * told + pairs * tokens * told
    return myself + asked + 2 * (4 * square) * tokens


def macs_with(each=14, square=2, told=2, cross=2, extra=lambda n, m, d: 0):
    def f(n, m, d):
        return (each * n + told * m) * d**2 + square * n**2 * d + cross * n * m * d + extra(n, m, d)

    return f


BLOCK_MACS_MUTANTS = {
    "flops": (lambda n, m, d: 2 * block_macs(n, m, d), "square of the patches' tokens"),
    "attention free of charge": (macs_with(square=0, cross=0), "square of the patches' tokens"),
    "scores only": (macs_with(square=1, cross=1), "square of the patches' tokens"),
    "cross-attention without pairs": (macs_with(cross=0), "both numbers of tokens"),
    "no layer after cross-attention": (macs_with(each=13), "with the patches' tokens"),
    "an MLP of one layer": (macs_with(each=10), "with the patches' tokens"),
    "keys and values of the patches": (
        macs_with(each=16, told=0),
        "with the condition's tokens.*made of the condition",
    ),
    "the condition asks, too": (macs_with(told=4), "with the condition's tokens"),
    "the condition's tokens among themselves": (
        macs_with(extra=lambda n, m, d: 2 * m * m * d),
        "square of the condition",
    ),
    "in context": (lambda n, m, d: 12 * (n + m) * d**2 + 2 * (n + m) ** 2 * d, "both numbers of tokens"),
    "adaLN-Zero": (lambda n, m, d: 12 * n * d**2 + 2 * n**2 * d + 6 * d**2, "both numbers of tokens"),
    "six vectors as well": (macs_with(extra=lambda n, m, d: 6 * d**2), "neither number of tokens.*six vectors"),
    "biases too": (macs_with(extra=lambda n, m, d: 11 * n * d), "with the patches' tokens"),
    "a number with a point": (lambda n, m, d: float(block_macs(n, m, d)), "a whole number.*float"),
    "right at width 8 alone": (
        lambda n, m, d: (14 * n + 2 * m) * 8 * d + 2 * n * (n + m) * 8,
        "library's block",
    ),
}

# ---- exercise 4 --------------------------------------------------------------------------------------


def attend(q, k, v, heads):
    q, k, v = (u.unflatten(2, (heads, -1)).transpose(1, 2) for u in (q, k, v))  # (b, heads, n, d / heads)
    weights = (q @ k.transpose(2, 3) / q.shape[3] ** 0.5).softmax(dim=3)
    return (weights @ v).transpose(1, 2).flatten(2)


def attend_head_by_head(q, k, v, heads):
    out = []
    for a, b, c in zip(*(u.chunk(heads, dim=2) for u in (q, k, v)), strict=True):
        scores = torch.einsum("bnd,bmd->bnm", a, b) / math.sqrt(a.shape[2])
        out.append(torch.einsum("bnm,bmd->bnd", scores.exp() / scores.exp().sum(2, keepdim=True), c))
    return torch.cat(out, dim=2)


def attend_fused(q, k, v, heads):
    q, k, v = (rearrange(u, "b n (h d) -> b h n d", h=heads) for u in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")


def attend_with(
    scale=lambda width, heads: (width / heads) ** -0.5, dim=3, split="b n (h d) -> b h n d", join="b h n d -> b n (h d)"
):
    def f(q, k, v, heads):
        width = q.shape[2]
        q, k, v = (rearrange(u, split, h=heads) for u in (q, k, v))
        return rearrange((q @ k.transpose(2, 3) * scale(width, heads)).softmax(dim) @ v, join)

    return f


def attend_unnormalised(q, k, v, heads):
    q, k, v = (rearrange(u, "b n (h d) -> b h n d", h=heads) for u in (q, k, v))
    return rearrange((q @ k.transpose(2, 3) / q.shape[3] ** 0.5).exp() @ v, "b h n d -> b n (h d)")


ATTEND_MUTANTS = {
    "softmax over the queries": (attend_with(dim=2), "if all values are 1"),
    "no softmax": (attend_unnormalised, "if all values are 1"),
    "the root of the whole width": (attend_with(lambda d, h: d**-0.5), "the scale of a head.*root of a head's width"),
    "no root": (attend_with(lambda d, h: h / d), "the scale of a head.*root of a head's width"),
    "no scale": (attend_with(lambda d, h: 1.0), "the scale of a head.*root of a head's width"),
    "heads ignored": (lambda q, k, v, heads: attend(q, k, v, 1), "the scale of a head.*its own channels alone"),
    "channels dealt out like cards": (
        attend_with(split="b n (d h) -> b h n d", join="b h n d -> b n (d h)"),
        "first head",
    ),
    "put back the other way": (attend_with(join="b h n d -> b n (d h)"), "first head"),
    "causal": (
        lambda q, k, v, heads: rearrange(
            F.scaled_dot_product_attention(
                *(rearrange(u, "b n (h d) -> b h n d", h=heads) for u in (q, k, v)), is_causal=True
            ),
            "b h n d -> b n (h d)",
        ),
        "order of the keys",
    ),
    "heads left apart": (attend_with(join="b h n d -> b h n d"), "has shape"),
}

# ---- exercise 5 --------------------------------------------------------------------------------------


def adaln_single(x, shared, table, attention, mlp):
    shift1, scale1, gate1, shift2, scale2, gate2 = (shared + table).unsqueeze(2).unbind(1)  # (b, 1, d) each
    heard = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale1) + shift1
    x = x + gate1 * attention(heard)
    heard = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale2) + shift2
    return x + gate2 * mlp(heard)


def adaln_single_in_a_loop(x, shared, table, attention, mlp):
    for k, branch in ((0, attention), (3, mlp)):
        shift, scale, gate = (shared[:, k + i, None] + table[k + i] for i in range(3))
        mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0)
        x = x + gate * branch((x - mean) / (var + 1e-6).sqrt() * (1 + scale) + shift)
    return x


def single_with(
    order=(0, 1, 2, 3, 4, 5),
    one=1.0,
    norm=lambda x: F.layer_norm(x, x.shape[-1:], eps=1e-6),
    sum_=lambda shared, table: shared + table,
    second=lambda before, after: after,
    gate=lambda x, g, said: x + g * said,
):
    def f(x, shared, table, attention, mlp):
        vectors = sum_(shared, table).unsqueeze(2).unbind(1)
        b1, s1, g1, b2, s2, g2 = (vectors[i] for i in order)
        h = gate(x, g1, attention(norm(x) * (one + s1) + b1))
        return gate(h, g2, mlp(norm(second(x, h)) * (one + s2) + b2))

    return f


def single_from_x(x, shared, table, attention, mlp):
    shift1, scale1, gate1, shift2, scale2, gate2 = (shared + table).unsqueeze(2).unbind(1)
    norm = lambda x: F.layer_norm(x, x.shape[-1:], eps=1e-6)  # noqa: E731
    h = x + gate1 * attention(norm(x) * (1 + scale1) + shift1)
    return x + gate2 * mlp(norm(h) * (1 + scale2) + shift2)


def single_gated_before(x, shared, table, attention, mlp):
    shift1, scale1, gate1, shift2, scale2, gate2 = (shared + table).unsqueeze(2).unbind(1)
    norm = lambda x: F.layer_norm(x, x.shape[-1:], eps=1e-6)  # noqa: E731
    x = x + attention(gate1 * (norm(x) * (1 + scale1) + shift1))
    return x + mlp(gate2 * (norm(x) * (1 + scale2) + shift2))


ADALN_SINGLE_MUTANTS = {
    "the table forgotten": (single_with(sum_=lambda s, t: s), "numbers in the table do.*shared \\+ table"),
    "the shared vectors forgotten": (single_with(sum_=lambda s, t: t.expand_as(s)), "numbers in the table do.*shared"),
    "table times shared": (single_with(sum_=lambda s, t: s * t), "leave the identity.*shared \\+ table"),
    "of the first image for all": (single_with(sum_=lambda s, t: (s[:1] + t).expand_as(s)), "image 1 is"),
    "scale without 1": (single_with(one=0.0), "normalised tokens.*1 \\+ scale"),
    "no norm": (single_with(norm=lambda x: x), "attention hears the normalised"),
    "norm over the tokens": (
        single_with(norm=lambda x: F.layer_norm(x.mT, x.shape[1:2], eps=1e-6).mT),
        "attention hears the normalised",
    ),
    "the eps of torch": (single_with(norm=lambda x: F.layer_norm(x, x.shape[-1:])), "with eps.*1e-6"),
    "scale before shift": (single_with(order=(1, 0, 2, 4, 3, 5)), "a shift of 1 adds.*in order"),
    "gates first": (single_with(order=(1, 2, 0, 4, 5, 3)), "a shift of 1 adds.*in order"),
    "the vectors of the MLP first": (single_with(order=(3, 4, 5, 0, 1, 2)), "a shift of 1 adds.*in order"),
    "gates exchanged": (single_with(order=(0, 1, 5, 3, 4, 2)), "a gate of 1 adds.*in order"),
    "attention and MLP side by side": (single_with(second=lambda before, after: before), "MLP hears what came of"),
    "the second sum from x": (single_from_x, "a gate of 1 adds what attention.*what came of the first"),
    "gates on what is heard": (single_gated_before, "the identity.*after it"),
    "no residual": (single_with(gate=lambda x, g, said: g * said), "the identity"),
    "gates around one": (single_with(gate=lambda x, g, said: x + (1 + g) * said), "the identity"),
    "x gated too": (single_with(gate=lambda x, g, said: g * (x + said)), "the identity"),
}

EXERCISES = {
    "patchify": (td.check.patchify, [patchify, patchify_by_slices, patchify_by_unfold], PATCHIFY_MUTANTS),
    "place": (td.check.place, [place, place_one_by_one], PLACE_MUTANTS),
    "block_macs": (td.check.block_macs, [block_macs, block_macs_by_layer], BLOCK_MACS_MUTANTS),
    "attend": (td.check.attend, [attend, attend_head_by_head, attend_fused], ATTEND_MUTANTS),
    "adaln_single": (td.check.adaln_single, [adaln_single, adaln_single_in_a_loop], ADALN_SINGLE_MUTANTS),
}
