"""Solutions of exercises 16, right and wrong, and what a wrong one is told: see test_checks."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange

import tinydiff as td

# ---- exercise 1 --------------------------------------------------------------------------------------


def draw_latent(moments, eps):
    mean, logvar = moments.chunk(2, dim=1)
    logvar = logvar.clamp(-30, 20)
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).flatten(1).sum(1)
    return mean + (logvar / 2).exp() * eps, kl


def draw_latent_with_distributions(moments, eps):
    c = eps.shape[1]
    std = torch.exp(0.5 * moments[:, c:].clamp(-30, 20))
    q = torch.distributions.Normal(moments[:, :c], std)
    prior = torch.distributions.Normal(torch.zeros_like(eps), torch.ones_like(eps))
    return q.mean + q.stddev * eps, torch.distributions.kl_divergence(q, prior).sum((1, 2, 3))


def draw_with(
    split=lambda m: m.chunk(2, dim=1),
    clamp=lambda v: v.clamp(-30, 20),
    width=lambda v: (v / 2).exp(),
    kl=lambda m, v: 0.5 * (m**2 + v.exp() - 1 - v),
    reduce=lambda k: k.flatten(1).sum(1),
):
    def f(moments, eps):
        mean, logvar = split(moments)
        return mean + width(clamp(logvar)) * eps, reduce(kl(mean, clamp(logvar)))

    return f


def draw_clamped_divergence_only(moments, eps):
    mean, logvar = moments.chunk(2, dim=1)
    return mean + (logvar / 2).exp() * eps, draw_latent(moments, eps)[1]


DRAW_LATENT_MUTANTS = {
    "the variance for the standard deviation": (draw_with(width=torch.exp), "one standard deviation.*root"),
    "the log-variance as it is": (draw_with(width=lambda v: v), "one standard deviation"),
    "log-variances first": (draw_with(split=lambda m: m.chunk(2, dim=1)[::-1]), "without noise.*first half"),
    "every other channel": (draw_with(split=lambda m: (m[:, ::2], m[:, 1::2])), "without noise.*first half"),
    "split along the height": (draw_with(split=lambda m: (m[:, :, :2], m[:, :, 2:])), "the function runs|has shape"),
    "its own noise": (
        lambda m, e: draw_latent(m, torch.randn_like(e)),
        "asked twice.*draws none of its own",
    ),
    "no noise": (lambda m, e: (m.chunk(2, dim=1)[0], draw_latent(m, e)[1]), "one standard deviation"),
    "the mean divergence": (draw_with(reduce=lambda k: k.flatten(1).mean(1)), "half a nat.*sum over"),
    "summed over the batch": (draw_with(reduce=lambda k: k.sum()), "the divergence has shape"),
    "no half": (draw_with(kl=lambda m, v: m**2 + v.exp() - 1 - v), "half a nat"),
    "no minus one": (draw_with(kl=lambda m, v: 0.5 * (m**2 + v.exp() - v)), r"divergence of N\(0, 1\) is 0"),
    "plus the log-variance": (draw_with(kl=lambda m, v: 0.5 * (m**2 + v.exp() - 1 + v)), "that of two Gaussians"),
    "the other way round": (
        draw_with(kl=lambda m, v: 0.5 * ((1 + m**2) / v.exp() - 1 + v)),
        "that of two Gaussians",
    ),
    "no clamp": (draw_with(clamp=lambda v: v), "is clamped, in the"),
    "no clamp for the draw": (draw_clamped_divergence_only, "is clamped, in the draw"),
    "the draw alone": (lambda m, e: draw_latent(m, e)[0], "returns a pair"),
}

# ---- exercise 2 --------------------------------------------------------------------------------------


def unit_latents(encode, decode, x):
    z = encode(x)
    mean, std = z.mean(), z.std()
    return lambda x: (encode(x) - mean) / std, lambda z: decode(z * std + mean)


def unit_latents_by_factor(encode, decode, x):
    z = encode(x).flatten()
    shift = z.sum() / len(z)
    scale = ((z - shift) ** 2).mean().rsqrt()

    def to_latents(x):
        return scale * encode(x) - scale * shift

    def to_images(z):
        return decode(z / scale + shift)

    return to_latents, to_images


def unit_with(
    measure=lambda z: (z.mean(), z.std()),
    to=lambda z, m, s: (z - m) / s,
    back=lambda z, m, s: z * s + m,
    anew=False,
):
    def f(encode, decode, x):
        m, s = measure(encode(x))

        def to_latents(x):
            z = encode(x)
            return to(z, *(measure(z) if anew else (m, s)))

        return to_latents, lambda z: decode(back(z, m, s))

    return f


UNIT_LATENTS_MUTANTS = {
    "no shift": (unit_with(to=lambda z, m, s: z / s, back=lambda z, m, s: z * s), "have mean 0"),
    "multiplied": (
        unit_with(to=lambda z, m, s: (z - m) * s, back=lambda z, m, s: z / s + m),
        "have standard deviation 1",
    ),
    "divided first": (
        unit_with(to=lambda z, m, s: z / s - m, back=lambda z, m, s: (z + m) * s),
        "have mean 0.*subtract first, then divide",
    ),
    "the variance": (unit_with(measure=lambda z: (z.mean(), z.var())), "have standard deviation 1"),
    "0.18215": (
        unit_with(measure=lambda z: (z.mean() * 0, torch.tensor(1 / 0.18215, dtype=z.dtype))),
        "have mean 0|have standard deviation 1",
    ),
    "each channel its own": (
        unit_with(measure=lambda z: (z.mean((0, 2, 3), True), z.std((0, 2, 3), keepdim=True))),
        "stay 4 to 1.*one scale",
    ),
    "each image its own": (
        unit_with(measure=lambda z: (z.mean((1, 2, 3), True), z.std((1, 2, 3), keepdim=True)), anew=True),
        "shifted and scaled alike|have standard deviation 1",
    ),
    "measured anew": (unit_with(anew=True), "later images are treated as x was.*once"),
    "the scale not undone": (unit_with(back=lambda z, m, s: z), r"is decode\(encode\(y\)\)"),
    "the shift not undone": (unit_with(back=lambda z, m, s: z * s), r"is decode\(encode\(y\)\)"),
    "undone in the same order": (unit_with(back=lambda z, m, s: (z + m) * s), r"is decode\(encode\(y\)\).*opposite"),
    "the pixels' own": (
        lambda encode, decode, x: (
            lambda y: (encode(y) - x.mean()) / x.std(),
            lambda z: decode(z * x.std() + x.mean()),
        ),
        "have mean 0",
    ),
    "one function": (lambda encode, decode, x: encode, "returns a pair"),
}

# ---- exercise 3 --------------------------------------------------------------------------------------


def quantise(z, entries, beta):
    vectors = z.movedim(1, -1)  # (b, h, w, c)
    codes = ((vectors[..., None, :] - entries) ** 2).sum(-1).argmin(-1)
    chosen = entries[codes].movedim(-1, 1)
    mean = lambda gap: (gap**2).flatten(1).mean(1)  # noqa: E731
    penalty = mean(chosen - z.detach()) + beta * mean(chosen.detach() - z)
    return z + (chosen - z).detach(), penalty, codes


def quantise_by_hand(z, entries, beta):
    b, c, h, w = z.shape
    flat = rearrange(z, "b c h w -> (b h w) c")
    codes = torch.cdist(flat.detach(), entries.detach()).argmin(1)
    picked = F.one_hot(codes, len(entries)).to(z.dtype) @ entries
    gap = ((picked - flat.detach()).square() + beta * (picked.detach() - flat).square()).view(b, h * w * c).sum(1)
    out = rearrange(picked.detach() + flat - flat.detach(), "(b h w) c -> b c h w", b=b, h=h)
    return out, gap / (h * w * c), codes.view(b, h, w)


def quantise_with(
    far=lambda v, e: ((v[..., None, :] - e) ** 2).sum(-1),
    through=lambda z, e: z + (e - z).detach(),
    first=lambda z, e: e - z.detach(),
    second=lambda z, e: e.detach() - z,
    weights=lambda beta: (1.0, beta),
    reduce=lambda gap: (gap**2).flatten(1).mean(1),
):
    def f(z, entries, beta):
        codes = far(z.movedim(1, -1), entries).argmin(-1)
        chosen = entries[codes].movedim(-1, 1)
        a, b = weights(beta)
        return through(z, chosen), a * reduce(first(z, chosen)) + b * reduce(second(z, chosen)), codes

    return f


def quantise_rows(z, entries, beta):
    b, c, h, w = z.shape
    flat = z.reshape(-1, c)  # the channel is not last
    codes = torch.cdist(flat, entries).argmin(1)
    chosen = entries[codes].view(z.shape)
    return z + (chosen - z).detach(), quantise(z, entries, beta)[1], codes.view(b, h, w)


QUANTISE_MUTANTS = {
    "the entries themselves": (quantise_with(through=lambda z, e: e), "goes straight through to z"),
    "no gradient at all": (quantise_with(through=lambda z, e: e.detach()), "what comes back has gradients"),
    "the vectors themselves": (
        quantise_with(through=lambda z, e: e + (z - e).detach()),
        "the output holds the entries",
    ),
    "both hear it": (quantise_with(through=lambda z, e: z + e - z.detach()), "no gradient at the entries"),
    "beta on the other term": (quantise_with(weights=lambda beta: (beta, 1.0)), "pulls z with weight beta"),
    "nothing detached": (
        quantise_with(first=lambda z, e: e - z, second=lambda z, e: e - z),
        "pulls z with weight beta.*detach",
    ),
    "no commitment": (quantise_with(weights=lambda beta: (1.0, 0.0)), "1 \\+ beta"),
    "commitment alone": (quantise_with(weights=lambda beta: (0.0, 1 + beta)), "pulls z with weight beta"),
    "sums": (quantise_with(reduce=lambda gap: (gap**2).flatten(1).sum(1)), "1 \\+ beta.*mean over"),
    "norms": (quantise_with(reduce=lambda gap: gap.norm(dim=1).flatten(1).mean(1)), "1 \\+ beta"),
    "the mean over the batch": (quantise_with(reduce=lambda gap: (gap**2).mean()), "the penalty has shape"),
    "the largest product": (quantise_with(far=lambda v, e: -(v @ e.T)), "nearest entry.*not only directions"),
    "the farthest": (quantise_with(far=lambda v, e: -((v[..., None, :] - e) ** 2).sum(-1)), "nearest entry"),
    "a view that mixes places": (quantise_rows, "nearest entry.*channel to the last axis"),
    "two values": (lambda z, e, beta: quantise(z, e, beta)[:2], "returns three values"),
}

# ---- exercise 4 --------------------------------------------------------------------------------------


def ask_words(x, words, mask, wq, wk, wv, heads):
    q, k, v = (
        (u @ w.T).unflatten(2, (heads, -1)).transpose(1, 2) for u, w in ((x, wq), (words, wk), (words, wv))
    )  # (b, heads, n or m, d / heads)
    scores = q @ k.mT / q.shape[-1] ** 0.5
    scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def ask_words_head_by_head(x, words, mask, wq, wk, wv, heads):
    out = []
    for q, k, v in zip(*((u @ w.T).chunk(heads, 2) for u, w in ((x, wq), (words, wk), (words, wv))), strict=True):
        scores = torch.einsum("bnd,bmd->bnm", q, k) / math.sqrt(q.shape[2])
        e = (scores - scores.amax(2, keepdim=True)).exp() * mask[:, None].to(x.dtype)
        out.append(torch.einsum("bnm,bmd->bnd", e / e.sum(2, keepdim=True), v))
    return torch.cat(out, dim=2)


def ask_words_fused(x, words, mask, wq, wk, wv, heads):
    split = lambda u, w: rearrange(F.linear(u, w), "b n (h d) -> b h n d", h=heads)  # noqa: E731
    h = F.scaled_dot_product_attention(split(x, wq), split(words, wk), split(words, wv), attn_mask=mask[:, None, None])
    return rearrange(h, "b h n d -> b n (h d)")


def ask_with(
    hide=lambda s, mask: s.masked_fill(~mask[:, None, None], -torch.inf),
    weigh=lambda s, mask: s.softmax(-1),
    scale=lambda width, heads: (width / heads) ** -0.5,
    split="b n (h d) -> b h n d",
    join="b h n d -> b n (h d)",
    swap=False,
):
    def f(x, words, mask, wq, wk, wv, heads):
        q, k, v = (rearrange(u @ w.T, split, h=heads) for u, w in ((x, wq), (words, wk), (words, wv)))
        if swap:
            k, v = v, k
        return rearrange(weigh(hide(q @ k.mT * scale(x.shape[2], heads), mask), mask) @ v, join)

    return f


ASK_WORDS_MUTANTS = {
    "no mask": (ask_with(hide=lambda s, mask: s), "what a masked word says changes nothing"),
    "the mask the wrong way round": (
        ask_with(hide=lambda s, mask: s.masked_fill(mask[:, None, None], -torch.inf)),
        "what a masked word says changes nothing.*True in the mask means that a word may be heard",
    ),
    "scores of zero": (
        ask_with(hide=lambda s, mask: s.masked_fill(~mask[:, None, None], 0.0)),
        "changes nothing.*mask before the softmax",
    ),
    "scores of minus one": (
        ask_with(hide=lambda s, mask: s.masked_fill(~mask[:, None, None], -1.0)),
        "changes nothing",
    ),
    "after the softmax": (
        ask_with(hide=lambda s, mask: s, weigh=lambda s, mask: s.softmax(-1) * mask[:, None, None]),
        "if all values are 1.*mask before the softmax",
    ),
    "the mask of the first image": (
        ask_with(hide=lambda s, mask: s.masked_fill(~mask[:1, None, None], -torch.inf)),
        "changes nothing.*mask of its own",
    ),
    "softmax over the places": (ask_with(weigh=lambda s, mask: s.softmax(2)), "if all values are 1"),
    "the root of the whole width": (ask_with(scale=lambda d, h: d**-0.5), "d / heads, not of d"),
    "no scale": (ask_with(scale=lambda d, h: 1.0), "heads = 1.*the root of a head's width"),
    "no root": (ask_with(scale=lambda d, h: h / d), "heads = 1.*the root of a head's width"),
    "keys for values": (ask_with(swap=True), "keys and values are swapped"),
    "channels dealt out like cards": (
        ask_with(split="b n (d h) -> b h n d", join="b h n d -> b n (d h)"),
        "heads = 4.*with one head it agrees.*side by side",
    ),
    "a causal mask": (
        ask_with(hide=lambda s, mask: (s + torch.full(s.shape[2:], -1e9).triu(1).to(s)).masked_fill(
            ~mask[:, None, None], -torch.inf
        )),
        "order of the words",
    ),
    "places ask places": (lambda x, w, m, wq, wk, wv, heads: x @ wq.T, "if all values are 1"),
}  # fmt: skip

# ---- exercise 5 --------------------------------------------------------------------------------------


def critic_term(loss, adversarial, last, share):
    a, b = (torch.autograd.grad(value, last, retain_graph=True)[0].norm() for value in (loss, adversarial))
    return share * (a / (b + 1e-4)).clamp(max=1e4).detach() * adversarial


def critic_term_in_steps(loss, adversarial, last, share):
    sizes = []
    for value in (loss, adversarial):
        (g,) = torch.autograd.grad(value, [last], retain_graph=True)
        sizes.append(g.pow(2).sum().sqrt().item())
    return adversarial * (share * min(sizes[0] / (sizes[1] + 1e-4), 1e4))


def critic_with(
    size=lambda g: g.norm(), weigh=lambda a, b: (a / (b + 1e-4)).clamp(max=1e4), cut=lambda w: w.detach(), **more
):
    options = dict(retain_graph=True) | more

    def f(loss, adversarial, last, share):
        a, b = (size(torch.autograd.grad(v, last, **options)[0]) for v in (loss, adversarial))
        return share * cut(weigh(a, b)) * adversarial

    return f


def critic_by_backward(loss, adversarial, last, share):
    loss.backward(retain_graph=True)
    a, last.grad = last.grad.norm(), None
    adversarial.backward(retain_graph=True)
    return share * (a / (last.grad.norm() + 1e-4)).clamp(max=1e4) * adversarial


def critic_by_values(loss, adversarial, last, share):
    return share * (loss / (adversarial.abs() + 1e-4)).clamp(max=1e4).detach() * adversarial


CRITIC_TERM_MUTANTS = {
    "upside down": (
        critic_with(weigh=lambda a, b: (b / (a + 1e-4)).clamp(max=1e4)),
        "value is share.*norm of the first",
    ),
    "by the losses": (critic_by_values, "value is share.*norm of the first"),
    "squared norms": (critic_with(size=lambda g: g.square().sum()), "value is share.*norm of the first"),
    "the largest entries": (critic_with(size=lambda g: g.abs().max()), "value is share.*norm of the first"),
    "share forgotten": (lambda a, b, last, share: critic_term(a, b, last, 1.0), "value is share.*share times weight"),
    "always a half": (lambda a, b, last, share: critic_term(a, b, last, 0.5), "value is share.*share = 0.75"),
    "the sign lost": (lambda *args: -critic_term(*args), "value is share.*with its sign"),
    "the absolute value": (lambda *args: critic_term(*args).abs(), "value is share.*with its sign"),
    "the weight has a gradient": (
        critic_with(cut=lambda w: w, create_graph=True),
        "at `last` its gradient|adversarial loss alone.*no gradient goes through it",
    ),
    "all detached": (lambda *args: critic_term(*args).detach(), "differentiated afterwards.*no gradient goes through"),
    "the graph freed": (critic_with(retain_graph=False), "already freed.*needed again"),
    "by backward": (critic_by_backward, r"no \.grad is filled"),
    "no 0.0001": (critic_with(weigh=lambda a, b: (a / b).clamp(max=1e4)), "value is share.*0.0001 is added"),
    "no cap": (critic_with(weigh=lambda a, b: a / (b + 1e-4)), "at most 10,000"),
    "a number": (lambda *args: critic_term(*args).item(), "the term is a tensor"),
}

EXERCISES = {
    "draw_latent": (td.check.draw_latent, [draw_latent, draw_latent_with_distributions], DRAW_LATENT_MUTANTS),
    "unit_latents": (td.check.unit_latents, [unit_latents, unit_latents_by_factor], UNIT_LATENTS_MUTANTS),
    "quantise": (td.check.quantise, [quantise, quantise_by_hand], QUANTISE_MUTANTS),
    "ask_words": (td.check.ask_words, [ask_words, ask_words_head_by_head, ask_words_fused], ASK_WORDS_MUTANTS),
    "critic_term": (td.check.critic_term, [critic_term, critic_term_in_steps], CRITIC_TERM_MUTANTS),
}
