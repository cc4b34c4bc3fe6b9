"""Checks of exercises 16: a draw of the latents, a measured scale, a codebook, cross-attention, a critic's weight.

Each compares with properties that follow from the definition, and at the end with the library.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tinydiff.check.core import CheckFailed, call, fail, is_close, is_tensor_like, right
from tinydiff.models import VQAutoencoder, text
from tinydiff.models.autoencoder import DiagonalGaussian

F64 = torch.float64

HALVES = "the first half of the channels are means, the second half log-variances: chunk along axis 1"
ROOT = "the logarithm of the variance is given: its exponential is the variance, and a standard deviation its root"
GIVEN = "the noise is given: it is eps, and the function draws none of its own"
EACH_IMAGE = "a sum over the latent numbers of each image (all axes but the first), one number an image"
DIVERGENCE = (
    "the divergence of N(mean, variance) from N(0, 1), in nats: it is 0 for mean 0 and variance 1, and never negative"
)
CLAMP = "log-variances are clamped to [-30, 20] before anything else, for the draw and for the divergence"
MEASURED = "one mean and one standard deviation, over all images, channels and places, of what encode gives for x"
ORDER = "subtract first, then divide: the mean was measured on latents that are not scaled yet"
SAME = "the two numbers are measured once, on x, and then stay as they are, whatever is encoded later"
ALL_CHANNELS = "all channels share one scale and one shift, so the latents keep their proportions"
UNDONE = "to_images undoes what to_latents did, in the opposite order, and then decodes"
NEAREST = "the entry with the smallest Euclidean distance to the vector: sizes count, not only directions"
VECTORS = "a latent vector holds the c channels at one place: bring the channel to the last axis before you compare"
FORWARD = "what comes out are entries of the codebook, in their places"
STRAIGHT = (
    "the gradient at z is that of the output, as though nothing had been quantised: add to z a difference that is cut "
    "off from the gradient"
)
NOT_ENTRIES = "through the output no gradient reaches the entries: they learn by the penalty alone"
COMMIT = "entries are pulled to the vectors with weight 1, vectors to the entries with weight beta: one detach in each"
MEAN = "each of the two terms is the mean over the c h w numbers of an image: one penalty an image"
MASKED = "a word that is masked gets no weight at all, and the others' weights sum to 1: mask before the softmax"
OWN_MASK = "each image has a mask of its own, the same for all its places and heads"
WORDS = "queries are made of places, keys and values of words; softmax runs over the words"
NOT_HEARD = "True in the mask means that a word may be heard; here the others are heard: turn the mask around"
SWAPPED = "keys and values are swapped: scores come from words @ wk.T, and what is averaged is words @ wv.T"
ROOT_OF_WIDTH = "scores are divided by the root of a head's width"
HEAD_WIDTH = "scores are divided by the root of a head's width, d / heads, not of d; with one head these are the same"
BLOCKS = "with one head it agrees: the heads' channels are neighbours, side by side in blocks of d / heads, in and out"
SHARE = "the term is share times weight times the adversarial loss, with its sign"
RATIO = "the weight is the norm of the first loss's gradient over that of the adversarial one, both at `last`"
SMALL = "0.0001 is added to the norm below the line, and the weight is at most 10,000"
CUT = "the weight counts as a number: no gradient goes through it"
KEPT = "torch.autograd.grad(loss, last, retain_graph=True)[0]: the graph is needed again, and no .grad is filled"


def _pair(name: str, out: Any, count: int, what: str) -> tuple:
    if not isinstance(out, tuple) or len(out) != count:
        came = f"{len(out)} values" if isinstance(out, tuple) else type(out).__name__
        fail(name, f"the function returns {what}", "any", came, "return what the signature says, in its order")
    return out


def draw_latent(fn: Callable) -> None:
    """Exercise 1: fn(moments, eps), (b, 2 c, h, w) and (b, c, h, w) -> z like eps, kl (b,)."""
    name, g = "draw_latent", torch.Generator().manual_seed(0)
    what = "a pair: the draw, the divergence"

    def ask(mean: Tensor, logvar: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        return _pair(name, call(name, fn, torch.cat([mean, logvar], dim=1), eps), 2, what)

    mean, logvar, eps = (torch.randn(3, 2, 4, 5, generator=g, dtype=F64) for _ in range(3))
    given = "moments of (3, 4, 4, 5): 2 means and 2 log-variances at each place"
    z, kl = ask(mean, logvar, eps)
    is_tensor_like(name, "the draw", z, eps, "the draw has half as many channels as the moments")
    is_tensor_like(name, "the divergence", kl, eps[:, 0, 0, 0], EACH_IMAGE)
    is_close(name, "asked twice, the draw is the same", given, ask(mean, logvar, eps)[0], z, GIVEN, 1e-9)
    still = ask(mean, logvar, torch.zeros_like(eps))[0]
    is_close(name, "without noise the draw is the mean", given + ", eps = 0", still, mean, HALVES, 1e-9)
    four = torch.full_like(eps, math.log(4.0))
    wide = ask(torch.zeros_like(eps), four, torch.ones_like(eps))[0]
    prop = "with mean 0, variance 4 and eps = 1 the draw is one standard deviation, 2"
    is_close(name, prop, "mean 0, log-variance log 4, eps = 1", wide, 2 * torch.ones_like(eps), ROOT, 1e-9)
    zeros, standard = torch.zeros_like(eps), "mean 0, log-variance 0"
    nothing = ask(zeros, zeros, eps)[1]
    is_close(name, "the divergence of N(0, 1) is 0", standard, nothing, zeros[:, 0, 0, 0], DIVERGENCE, 1e-9)
    one = ask(zeros + 1, zeros, eps)[1]
    prop = "a mean of 1 costs half a nat for each of the 40 latent numbers of an image"
    is_close(name, prop, "mean 1, log-variance 0", one, 20 + zeros[:, 0, 0, 0], f"{DIVERGENCE}; {EACH_IMAGE}", 1e-9)
    due = DiagonalGaussian(mean, logvar)
    is_close(name, "the divergence is that of two Gaussians", given, kl, due.kl(), DIVERGENCE, 1e-9)
    is_close(name, "each number has its own width", given, z, mean + (logvar / 2).exp() * eps, ROOT, 1e-9)
    for far, prop in ((-100.0, "far below -30"), (100.0, "far above 20")):
        z, kl = ask(zeros, zeros + far, torch.ones_like(eps))
        same = DiagonalGaussian(zeros, zeros + far)
        given = f"mean 0, log-variance {far:.0f}, eps = 1"
        # relative to what is due, since e^20 is large and e^-15 small
        width = (same.logvar / 2).exp()
        is_close(name, f"a log-variance {prop} is clamped, in the draw", given, z / width, width / width, CLAMP, 1e-6)
        is_close(name, f"a log-variance {prop} is clamped, in the divergence", given, kl, same.kl(), CLAMP, 1e-6)
    right(name, 8)


def unit_latents(fn: Callable) -> None:
    """Exercise 2: fn(encode, decode, x) -> to_latents, to_images, by a scale and a shift measured on x."""
    name, g = "unit_latents", torch.Generator().manual_seed(0)
    gains = torch.tensor([4.0, 1.0], dtype=F64).view(1, 2, 1, 1)
    shifts = torch.tensor([3.0, 2.0], dtype=F64).view(1, 2, 1, 1)
    asked = []

    def encode(x: Tensor) -> Tensor:
        asked.append(len(x))
        return gains * x + shifts

    def decode(z: Tensor) -> Tensor:
        return ((z - shifts) / gains) ** 3  # not linear, so that what it is handed shows

    x, y = torch.randn(200, 2, 4, 4, generator=g, dtype=F64), torch.randn(5, 2, 4, 4, generator=g, dtype=F64)
    pair = _pair(name, call(name, fn, encode, decode, x), 2, "a pair of functions: to_latents, to_images")
    if not all(callable(f) for f in pair):
        fail(name, "both are functions", "any", ", ".join(type(f).__name__ for f in pair), "return two functions")
    to_latents, to_images = pair
    given = "200 images, latents of two channels with standard deviations 4 and 1 and means 3 and 2"
    z = call(name, to_latents, x)
    is_tensor_like(name, "what to_latents gives", z, x, "latents of the shape that encode gives")
    raw = encode(x)
    due = (raw - raw.mean()) / raw.std()
    zero, one = torch.zeros((), dtype=F64), torch.ones((), dtype=F64)
    hint = ORDER if (z - (raw / raw.std() - raw.mean())).abs().max() < 1e-2 else MEASURED
    is_close(name, "latents of x have mean 0", given, z.mean(), zero, hint, 1e-6)
    is_close(name, "latents of x have standard deviation 1", given, z.std(), one, MEASURED, 5e-3)
    prop = "the two channels' standard deviations stay 4 to 1"
    ratio = z[:, 0].std() / z[:, 1].std()
    is_close(name, prop, given, ratio, raw[:, 0].std() / raw[:, 1].std(), ALL_CHANNELS, 1e-6)
    is_close(name, "each latent is shifted and scaled alike", given, z, due, ALL_CHANNELS, 5e-3)
    other = "5 further images"
    later = call(name, to_latents, y)
    is_close(name, "later images are treated as x was", other, later, (encode(y) - raw.mean()) / raw.std(), SAME, 5e-3)
    is_close(name, "also if x itself comes later in parts", "x[:3]", call(name, to_latents, x[:3]), z[:3], SAME, 1e-9)
    back = call(name, to_images, later)
    is_tensor_like(name, "what to_images gives", back, y, "images of the shape that decode gives")
    is_close(name, "to_images(to_latents(y)) is decode(encode(y))", other, back, decode(encode(y)), UNDONE, 1e-6)
    zeros = torch.zeros(3, 2, 4, 4, dtype=F64)
    prop = "latents of 0 are decoded as the mean latent"
    is_close(name, prop, "z = 0", call(name, to_images, zeros), decode(zeros + raw.mean()), UNDONE, 1e-6)
    right(name, 8)


def quantise(fn: Callable) -> None:
    """Exercise 3: fn(z, entries, beta), (b, c, h, w) and (K, c) -> q like z, penalty (b,), codes (b, h, w)."""
    name, g = "quantise", torch.Generator().manual_seed(0)
    z = (1.5 * torch.randn(2, 3, 4, 5, generator=g, dtype=F64)).requires_grad_()
    entries = torch.randn(6, 3, generator=g, dtype=F64)
    entries[0] *= 3  # a long one, which a product alone would choose too often
    entries.requires_grad_()
    given = "z of (2, 3, 4, 5), 6 entries of 3 numbers, beta = 0.25"
    what = "three values: the quantised latents, the penalty, the numbers of the entries"
    q, penalty, codes = _pair(name, call(name, fn, z, entries, 0.25), 3, what)
    is_tensor_like(name, "what is quantised", q, z, "as many vectors of c numbers as came, in their places")
    is_tensor_like(name, "the penalty", penalty, z[:, 0, 0, 0], MEAN)
    is_tensor_like(name, "the numbers of the entries", codes, torch.empty(2, 4, 5, dtype=torch.long), VECTORS)
    far = torch.cdist(z.detach().movedim(1, -1).reshape(-1, 3), entries.detach())
    nearest = far.argmin(1).view(2, 4, 5)
    if not torch.equal(codes, nearest):
        n = int((codes != nearest).sum())
        scores = z.detach().movedim(1, -1).reshape(-1, 3) @ entries.detach().T
        hint = NEAREST if torch.equal(codes.flatten(), scores.argmax(1)) else f"{NEAREST}; {VECTORS}"
        fail(name, "each vector has its nearest entry", given, f"another one at {n} of 40 places", hint)
    chosen = entries.detach()[nearest].movedim(-1, 1)
    is_close(name, "the output holds the entries", given, q.detach(), chosen, f"{FORWARD}; {VECTORS}", 1e-9)
    slope = torch.randn(q.shape, generator=g, dtype=F64)
    by_z, by_entries = _slopes(name, (q * slope).sum(), z, entries, given)
    zeros = torch.zeros_like
    is_close(name, "the gradient of the output goes straight through to z", given, by_z, slope, STRAIGHT, 1e-9)
    is_close(name, "the output has no gradient at the entries", given, by_entries, zeros(entries), NOT_ENTRIES, 1e-9)
    gap = z.detach() - chosen
    square = gap.square().flatten(1).mean(1)
    is_close(
        name, "the penalty is (1 + beta) times the mean square", given, penalty.detach(), 1.25 * square, MEAN, 1e-9
    )
    by_z, by_entries = _slopes(name, penalty.sum(), z, entries, given)
    size = gap[0].numel()
    is_close(name, "the penalty pulls z with weight beta", given, by_z, 0.25 * 2 * gap / size, COMMIT, 1e-9)
    pull = (-2 * gap / size).movedim(1, -1).reshape(-1, 3)
    due = torch.zeros_like(entries).index_add(0, nearest.flatten(), pull).detach()
    is_close(name, "the penalty pulls the entries with weight 1", given, by_entries, due, COMMIT, 1e-9)
    with torch.random.fork_rng(devices=[]):
        vq = VQAutoencoder(1, 3, 8, (1,), codes=6, beta=1.0).double()
    with torch.no_grad():
        vq.codebook.weight.copy_(entries)
        theirs = vq.quantise(z)
    mine = call(name, fn, z, entries, 1.0)
    for a, b in zip(mine[:2], theirs[:2], strict=True):
        is_close(name, "it agrees with the library's at beta = 1", given, a.detach(), b, MEAN, 1e-9)
    right(name, 8)


def _slopes(name: str, value: Tensor, z: Tensor, entries: Tensor, given: str) -> tuple[Tensor, Tensor]:
    if not value.requires_grad:
        fail(name, "what comes back has gradients", given, "a value without any", STRAIGHT)
    found = torch.autograd.grad(value, (z, entries), retain_graph=True, allow_unused=True)
    return tuple(torch.zeros_like(v) if f is None else f for f, v in zip(found, (z, entries), strict=True))


def ask_words(fn: Callable) -> None:
    """Exercise 4: fn(x, words, mask, wq, wk, wv, heads), (b, n, d), (b, m, e), (b, m) -> (b, n, d)."""
    name, g = "ask_words", torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=F64)

    x, words = draw(2, 7, 8), draw(2, 5, 6)
    weights = draw(8, 8), draw(8, 6) / 2, draw(8, 6)
    mask = torch.tensor([[True, True, True, False, False], [True, False, True, True, True]])
    every = torch.ones_like(mask)
    for heads in (1, 4):
        given = f"x of (2, 7, 8), words of (2, 5, 6), the mask leaves out 2 and 1 of the words, heads = {heads}"
        out = call(name, fn, x, words, mask, *weights, heads)
        is_tensor_like(name, "what comes back", out, x, "as many rows as places, as wide as the queries")
        args = x, words, mask, *weights, heads
        # as though all values were 1: words and wv such that words @ wv.T is 1
        ones = torch.cat([words[..., :5], torch.ones_like(words[..., :1])], dim=2)
        last = torch.zeros(8, 6, dtype=F64)
        last[:, 5] = 1
        same = call(name, fn, x, ones, mask, *weights[:2], last, heads)
        hint = _mistake(out, *args) or f"{MASKED}; {WORDS}"
        is_close(name, "if all values are 1, so is the answer", given, same, torch.ones_like(x), hint, 1e-9)
        other = torch.where(mask[..., None], words, 10 * draw(2, 5, 6))
        moved = call(name, fn, x, other, mask, *weights, heads)
        spoken = torch.where(mask[..., None], 10 * draw(2, 5, 6), words)
        deaf = torch.allclose(call(name, fn, x, spoken, mask, *weights, heads), out)
        hint = NOT_HEARD if deaf else f"{MASKED}; {OWN_MASK}"
        is_close(name, "what a masked word says changes nothing", given, moved, out, hint, 1e-9)
        few = call(name, fn, x[:1], words[:1, :3], every[:1, :3], *weights, heads)
        is_close(name, "a masked word is as though it were not there", given, out[:1], few, MASKED, 1e-9)
        order = [3, 1, 4, 0, 2]
        turned = call(name, fn, x, words[:, order], mask[:, order], *weights, heads)
        is_close(name, "the order of the words does not matter", given, turned, out, WORDS, 1e-9)
        twice = call(name, fn, x, words.repeat(1, 2, 1), mask.repeat(1, 2), *weights, heads)
        is_close(name, "nor that each of them is said twice", given, twice, out, WORDS, 1e-9)
        with torch.random.fork_rng(devices=[]):
            layer = text.MultiHead(8, 6, heads).double()
        with torch.no_grad():
            layer.q.weight.copy_(weights[0])
            layer.kv.weight.copy_(torch.cat(weights[1:]))
            nn.init.eye_(layer.out.weight), nn.init.zeros_(layer.out.bias)
            due = layer(x, words, mask)
        hint = _mistake(out, *args) or (f"{ROOT_OF_WIDTH}; {WORDS}" if heads == 1 else BLOCKS)
        is_close(name, "it agrees with the library's", given, out, due, hint, 1e-9)
    right(name, 6)


def _mistake(
    out: Tensor, x: Tensor, words: Tensor, mask: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, heads: int
) -> str:
    """The hint at the usual mistake that gives exactly this; "" if none does."""
    width = x.shape[2]

    def attend(wk: Tensor, wv: Tensor, size: float) -> Tensor:
        q, k, v = ((u @ w.T).unflatten(2, (heads, -1)).transpose(1, 2) for u, w in ((x, wq), (words, wk), (words, wv)))
        scores = (q @ k.mT / size).masked_fill(~mask[:, None, None], -torch.inf)
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)

    root = (width / heads) ** 0.5
    usual = [(SWAPPED, (wv, wk, root)), (ROOT_OF_WIDTH, (wk, wv, 1.0)), (ROOT_OF_WIDTH, (wk, wv, width / heads))]
    usual += [(HEAD_WIDTH, (wk, wv, width**0.5))] if heads > 1 else []
    return next((hint for hint, given in usual if torch.allclose(attend(*given), out)), "")


def critic_term(fn: Callable) -> None:
    """Exercise 5: fn(loss, adversarial, last, share) -> the term that the discriminator adds to the loss."""
    name, g = "critic_term", torch.Generator().manual_seed(0)

    def ask(k: float = 1.0, share: float = 0.5, size: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The term and the two losses of a decoder of two layers; `last` is the second."""
        first, last = (torch.randn(4, 4, generator=g, dtype=F64).requires_grad_() for _ in range(2))
        out = torch.tanh(torch.randn(8, 4, generator=g, dtype=F64) @ first) @ last
        loss, adversarial = size * (out - 1).abs().mean(), -k * torch.sin(out).mean()
        try:
            term = call(name, fn, loss, adversarial, last, share)
        except CheckFailed as error:
            if "backward through the graph a second time" not in str(error):
                raise
            fail(name, "the function runs", "losses that share a decoder", "a graph that is already freed", KEPT)
        is_tensor_like(name, "the term", term, loss.detach(), "one number, a tensor, which has gradients")
        if last.grad is not None or first.grad is not None:
            fail(name, "no .grad is filled", "any", "a .grad at the decoder", KEPT)
        return term, loss, adversarial, last, first

    def slope(value: Tensor, at: Tensor) -> Tensor:
        try:
            return torch.autograd.grad(value, at, retain_graph=True)[0]
        except RuntimeError as error:
            came = str(error).split(".")[0]
            fail(name, "the losses can be differentiated afterwards", "any", came, f"{KEPT}; {CUT}")

    for k in (1.0, 100.0, 0.1):
        for share in (0.5, 0.75):
            given = f"share = {share}, the adversarial loss multiplied by {k:g}"
            term, loss, adversarial, last, first = ask(k, share)
            above, below = (slope(value, last).norm() for value in (loss, adversarial))
            w = above / (below + 1e-4)
            came = (term / adversarial).detach()
            hint = next((h for v, h in ((w, SHARE), (share * above / below, SMALL)) if abs(came / v - 1) < 1e-9), RATIO)
            hint = SHARE if came < 0 else hint
            is_close(name, "its value is share * weight * adversarial", given, came / w, share * w / w, hint, 1e-6)
            prop = "at `last` its gradient is share times as large as the first loss's"
            is_close(name, prop, given, slope(term, last).norm() / above, share * w * below / above, CUT, 1e-6)
            prop, due = (
                "elsewhere it pulls along the adversarial loss alone",
                share * w.detach() * slope(adversarial, first),
            )
            is_close(name, prop, given, slope(term, first), due, CUT, 1e-6)
    term, loss, adversarial, last, _ = ask(1e-4)
    sizes = [slope(value, last).norm() for value in (loss, adversarial)]
    given = "an adversarial loss with a gradient about as small as 0.0001"
    due = 0.5 * sizes[0] / (sizes[1] + 1e-4) * adversarial
    is_close(name, "the 0.0001 below the line counts", given, term / adversarial, due / adversarial, SMALL, 1e-6)
    term, _, adversarial, _, _ = ask(1e-6, size=100.0)
    given = "an adversarial loss with hardly a gradient"
    is_close(name, "the weight is at most 10,000", given, term / adversarial, torch.tensor(5e3, dtype=F64), SMALL, 1e-6)
    right(name, 6)
