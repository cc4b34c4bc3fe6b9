"""Solutions of exercises 11, right and wrong, and what a wrong one is told: see test_checks."""

import math

import torch
import torch.nn.functional as F

import tinydiff as td

# ---- exercise 1 --------------------------------------------------------------------------------------


def iou(pred, mask):
    shared, either = (pred & mask).sum((1, 2)), (pred | mask).sum((1, 2))
    return torch.where(either == 0, 1.0, shared / either.clamp(min=1))


def iou_by_areas(pred, mask):
    a, b = pred.float().flatten(1), mask.float().flatten(1)
    shared = (a * b).sum(1)
    return torch.nan_to_num(shared / (a.sum(1) + b.sum(1) - shared), nan=1.0)


IOU_MUTANTS = {
    "Dice": (lambda p, m: 2 * (p & m).sum((1, 2)) / (p.sum((1, 2)) + m.sum((1, 2))), "4 pixels of 12"),
    "union counted twice": (lambda p, m: (p & m).sum((1, 2)) / (p.sum((1, 2)) + m.sum((1, 2))), "a map and itself: 1"),
    "recall": (lambda p, m: (p & m).sum((1, 2)) / m.sum((1, 2)), "4 pixels of 12"),
    "share of right pixels": (lambda p, m: (p == m).float().mean((1, 2)), "4 pixels of 12"),
    "over the batch": (lambda p, m: (p & m).sum() / (p | m).sum(), r"shape \(5,\).*not over the batch"),
    "one for each column": (lambda p, m: (p & m).sum(1) / (p | m).sum(1), r"shape \(5,\)"),
    "0 / 0": (lambda p, m: (p & m).sum((1, 2)) / (p | m).sum((1, 2)), "two empty maps agree"),
    "empty is 0": (lambda p, m: (p & m).sum((1, 2)) / (p | m).sum((1, 2)).clamp(min=1), "two empty maps agree"),
    "the batch's, for each": (
        lambda p, m: ((p & m).sum() / (p | m).sum().clamp(min=1)).expand(len(p)),
        "shared pixels over pixels in either",
    ),
    "float64": (lambda p, m: iou(p, m).double(), "dtype"),
}

# ---- exercise 2 --------------------------------------------------------------------------------------


def receptive_field(layers):
    seen, apart = 1, 1
    for kernel, stride in layers:
        seen += (kernel - 1) * apart
        apart *= stride
    return seen


def receptive_field_backwards(layers):
    """From the output to the input: n outputs in a row need (n - 1) stride + kernel inputs."""
    n = 1
    for kernel, stride in layers[::-1]:
        n = (n - 1) * stride + kernel
    return n


def field_own_stride_first(layers):
    seen, apart = 1, 1
    for kernel, stride in layers:
        apart *= stride
        seen += (kernel - 1) * apart
    return seen


def field_backwards_in_the_wrong_order(layers):
    n = 1
    for kernel, stride in layers:
        n = (n - 1) * stride + kernel
    return n


FIELD_MUTANTS = {
    "strides forgotten": (lambda layers: 1 + sum(k - 1 for k, _ in layers), "have a gradient.*Strides before it"),
    "its own stride first": (field_own_stride_first, "have a gradient.*not the layer itself"),
    "kernels in full": (lambda layers: sum(k for k, _ in layers), "1 pixels have a gradient|5 pixels|25 pixels"),
    "one too few": (lambda layers: receptive_field(layers) - 1, "3 pixels have a gradient"),
    "backwards in the wrong order": (field_backwards_in_the_wrong_order, "have a gradient"),
    "the square": (lambda layers: receptive_field(layers) ** 2, "3 pixels have a gradient"),
    "a float": (lambda layers: float(receptive_field(layers)), "whole number.*one int"),
    "half the width": (lambda layers: (receptive_field(layers) - 1) / 2 + 0.5, "whole number"),
    "a pair": (lambda layers: (3, 3), "whole number"),
}

# ---- exercise 3 --------------------------------------------------------------------------------------


def group_norm(x, groups, eps):
    h = x.unflatten(1, (groups, -1))  # (b, groups, c / groups, h, w)
    mean = h.mean((2, 3, 4), keepdim=True)
    var = h.var((2, 3, 4), correction=0, keepdim=True)
    return ((h - mean) / (var + eps).sqrt()).flatten(1, 2)


def group_norm_in_a_loop(x, groups, eps):
    parts = []
    for part in x.chunk(groups, dim=1):
        centred = part - part.mean((1, 2, 3), keepdim=True)
        parts.append(centred * (centred.square().mean((1, 2, 3), keepdim=True) + eps).rsqrt())
    return torch.cat(parts, dim=1)


def group_norm_by_layer_norm(x, groups, eps):
    flat = x.reshape(len(x), groups, -1)
    return F.layer_norm(flat, flat.shape[2:], eps=eps).view_as(x)


def norm_with(dims=(2, 3, 4), correction=0, root=lambda var, eps: (var + eps).sqrt()):
    def f(x, groups, eps):
        h = x.unflatten(1, (groups, -1))
        mean, var = h.mean(dims, keepdim=True), h.var(dims, correction=correction, keepdim=True)
        return ((h - mean) / root(var, eps)).flatten(1, 2)

    return f


def norm_by_strides(x, groups, eps):
    h = x.unflatten(1, (-1, groups))
    mean, var = h.mean((1, 3, 4), keepdim=True), h.var((1, 3, 4), correction=0, keepdim=True)
    return ((h - mean) / (var + eps).sqrt()).flatten(1, 2)


NORM_MUTANTS = {
    "over the batch as well": (norm_with(dims=(0, 2, 3, 4)), "alone is as it is in a batch"),
    "batch norm": (lambda x, g, eps: F.batch_norm(x, None, None, training=True, eps=eps), "alone is as it is"),
    "each channel by itself": (norm_with(dims=(3, 4)), "divided by one number"),
    "each pixel by itself": (norm_with(dims=(2,)), "NaN|mean 0|variance 1|divided by one number|nan"),
    "one group": (lambda x, g, eps: F.group_norm(x, 1, eps=eps), "has mean 0"),
    "one less": (norm_with(correction=1), "has variance 1.*not by one less"),
    "a variance for a deviation": (norm_with(root=lambda v, e: v + e), "has variance 1"),
    "eps beside the root": (norm_with(root=lambda v, e: v.sqrt() + e), "eps is added to the variance"),
    "without eps": (norm_with(root=lambda v, e: v.sqrt()), "eps is added to the variance"),
    "eps ignored": (lambda x, g, eps: group_norm(x, g, 1e-5), "eps is the one that is given"),
    "every second channel": (norm_by_strides, "has mean 0.*side by side"),
    "the groups left in": (lambda x, g, e: group_norm(x, g, e).unflatten(1, (g, -1)), r"shape \(4, 6, 3, 5\)"),
    "the mean left in": (lambda x, g, e: x / (x.var((1, 2, 3), keepdim=True) + e).sqrt(), "has mean 0"),
    "float32": (lambda x, g, e: group_norm(x.float(), g, e), "dtype"),
    "in place": (lambda x, g, e: x.sub_(x.mean()), "in place"),
}

# ---- exercise 4 --------------------------------------------------------------------------------------


def noise_embedding(t, width):
    half = width // 2
    freqs = 10_000 ** (-torch.arange(half) / half)
    angles = t[:, None] * freqs
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def noise_embedding_as_complex_numbers(t, width):
    freqs = torch.logspace(0, -4, width // 2 + 1)[:-1]
    turned = torch.polar(torch.ones(len(t), width // 2), torch.outer(t, freqs))
    return torch.cat([turned.real, turned.imag], dim=1)


def embed_with(freqs=lambda k, half: 10_000 ** (-k / half), join=lambda a: torch.cat([a.cos(), a.sin()], 1), scale=1.0):
    def f(t, width):
        half = width // 2
        return join(scale * t[:, None] * freqs(torch.arange(half), half))

    return f


EMBED_MUTANTS = {
    "sines first": (embed_with(join=lambda a: torch.cat([a.sin(), a.cos()], 1)), "first half is 1.*two halves"),
    "in turns": (embed_with(join=lambda a: torch.stack([a.cos(), a.sin()], 2).flatten(1)), "first half is 1"),
    "half - 1, as DDPM has it": (embed_with(lambda k, h: 10_000 ** (-k / (h - 1))), "each frequency is the one before"),
    "from the slow end": (embed_with(lambda k, h: 10_000 ** (-(h - k) / h)), "first frequency is 1"),
    "rising": (embed_with(lambda k, h: 10_000 ** (k / h)), "first frequency|each frequency"),
    "even, not geometric": (embed_with(lambda k, h: 1 - k / h), "each frequency is the one before"),
    "e for 10000": (embed_with(lambda k, h: torch.exp(-k / h)), "each frequency is the one before"),
    "the whole width for the half": (embed_with(lambda k, h: 10_000 ** (-k / (2 * h))), "each frequency is the one"),
    "twice pi": (embed_with(scale=2 * math.pi), "first frequency is 1"),
    "divided by 1000": (embed_with(scale=1e-3), "first frequency is 1"),
    "cosines alone": (embed_with(join=lambda a: a.cos()), r"shape \(5, 8\)"),
    "cosines twice": (embed_with(join=lambda a: torch.cat([a.cos(), a.cos()], 1)), "second half is 0"),
    "frequency by frequency": (lambda t, w: noise_embedding(t, w).T, r"shape \(5, 8\)"),
    "float64": (lambda t, w: noise_embedding(t.double(), w), "dtype"),
    "turned round": (embed_with(scale=-1.0), "first frequency is 1"),
    "noise level clipped": (lambda t, w: noise_embedding(t.clamp(max=100), w), "the angles are t times"),
}

# ---- exercise 5 --------------------------------------------------------------------------------------


def decoder_channels(width, mults, blocks):
    c, saved = width, [width]
    for level, mult in enumerate(mults):
        if level > 0:
            saved.append(c)
        for _ in range(blocks):
            c = mult * width
            saved.append(c)
    taken = []
    for mult in reversed(mults):
        for _ in range(blocks + 1):
            taken.append(c + saved.pop())
            c = mult * width
    return taken


def decoder_channels_in_closed_form(width, mults, blocks):
    """Each resolution saves `blocks` maps of its own, and one before them with the channels from above."""
    out, c = [], mults[-1]
    for level in reversed(range(len(mults))):
        above = mults[level - 1] if level else 1
        for skip in [mults[level]] * blocks + [above]:
            out.append((c + skip) * width)
            c = mults[level]
    return out


def decoder_with(first=True, halved=True, extra=1, pop=-1, follow=True, own=False, skip=True, changed=False):
    def f(width, mults, blocks):
        c, saved = width, [width] if first else []
        for level, mult in enumerate(mults):
            if level > 0 and halved:
                saved.append(c)
            for _ in range(blocks):
                c = mult * width
                saved.append(c)
        taken = []
        for mult in reversed(mults):
            for _ in range(blocks + extra):
                given = saved.pop(pop) if saved else 0
                c = mult * width if changed else c
                taken.append(c + (mult * width if own else given) * skip)
                c = mult * width if follow else c
        return taken

    return f


DECODER_MUTANTS = {
    "as many blocks as on the way down": (decoder_with(extra=0), "has 4 blocks.*one block more"),
    "no skips": (decoder_with(skip=False), "block 0 of 4 takes.*both counts add"),
    "first saved, first used": (decoder_with(pop=0), "takes.*saved last is used first"),
    "skips of the block's own resolution": (decoder_with(own=True), "takes.*halved map"),
    "the channels never change": (decoder_with(follow=False), "takes"),
    "halved maps not saved": (decoder_with(halved=False), "takes"),
    "the first convolution not saved": (decoder_with(first=False), "takes"),
    "in the encoder's order": (lambda w, m, b: decoder_channels(w, m, b)[::-1], "takes.*from the lowest resolution up"),
    "the channels change before the first block": (decoder_with(changed=True), "takes.*of the resolution below"),
    "what comes out": (
        lambda w, m, b: [w * mult for mult in reversed(m) for _ in range(b + 1)],
        "block 0 of 4 takes.*not what comes out",
    ),
    "in widths": (lambda w, m, b: [v // w for v in decoder_channels(w, m, b)], "block 0 of 4 takes"),
    "one number": (lambda w, m, b: sum(decoder_channels(w, m, b)), "a list of whole numbers"),
    "a tuple": (lambda w, m, b: tuple(decoder_channels(w, m, b)), "a list of whole numbers"),
    "floats": (lambda w, m, b: [float(v) for v in decoder_channels(w, m, b)], "a list of whole numbers"),
    "with the middle": (lambda w, m, b: [m[-1] * w] * 2 + decoder_channels(w, m, b), "has 4 blocks"),
}

EXERCISES = {
    "iou": (td.check.iou, [iou, iou_by_areas], IOU_MUTANTS),
    "receptive_field": (td.check.receptive_field, [receptive_field, receptive_field_backwards], FIELD_MUTANTS),
    "group_norm": (
        td.check.group_norm,
        [group_norm, group_norm_in_a_loop, group_norm_by_layer_norm],
        NORM_MUTANTS,
    ),
    "noise_embedding": (
        td.check.noise_embedding,
        [noise_embedding, noise_embedding_as_complex_numbers],
        EMBED_MUTANTS,
    ),
    "decoder_channels": (
        td.check.decoder_channels,
        [decoder_channels, decoder_channels_in_closed_form],
        DECODER_MUTANTS,
    ),
}
