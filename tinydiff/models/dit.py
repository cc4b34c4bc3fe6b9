"""The diffusion transformer, DiT (Peebles & Xie 2023): patches of an image are the tokens of a plain transformer.

    x -(patchify)-> tokens -(linear, + positions)-> blocks -(norm, linear)-> tokens -(unpatchify)-> out

The noise level t and the class y come in by one of four kinds of block (section 3.2, figure 3): as two more tokens, by
cross-attention to those two, or by the scale and shift of each norm, without a gate on each branch (adaLN) or with one
that starts at zero (adaLN-Zero). The official code holds adaLN-Zero only; what the paper leaves open for the other
three is decided here, and said where.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from tinydiff.models.layers import NoiseAndClass, sinusoidal, zero_

# ---- tokens ----------------------------------------------------------------------------------------


def patchify(x: Float[Tensor, "b c h w"], p: int) -> Float[Tensor, "b tokens ppc"]:
    """Patches of p x p pixels, row by row, the channel fastest in each. Raises ValueError unless p divides h and w."""
    if x.shape[2] % p or x.shape[3] % p:
        raise ValueError(f"p must divide h and w; got p = {p} for {x.shape[2]} x {x.shape[3]}")
    return rearrange(x, "b c (h p) (w q) -> b (h w) (p q c)", p=p, q=p)


def unpatchify(tokens: Float[Tensor, "b tokens ppc"], p: int) -> Float[Tensor, "b c h h"]:
    """The square image whose patches these are. Raises ValueError unless the number of tokens is a square."""
    rows = math.isqrt(tokens.shape[1])
    if rows**2 != tokens.shape[1]:
        raise ValueError(f"tokens must be those of a square image; got {tokens.shape[1]}, which is not a square")
    return rearrange(tokens, "b (h w) (p q c) -> b c (h p) (w q)", h=rows, p=p, q=p)


def positions(rows: int, width: int) -> Float[Tensor, "tokens width"]:
    """Fixed sines and cosines of the place of each of rows x rows patches: of its column in the first half of the
    vector, of its row in the second, at width / 4 frequencies each."""
    place = sinusoidal(torch.arange(rows, dtype=torch.float64), width // 2)  # (rows, width / 2), cosines first
    place = place.roll(width // 4, dims=1)  # sines first, as in the official code
    return torch.cat([repeat(place, "w d -> (h w) d", h=rows), repeat(place, "h d -> (h w) d", w=rows)], dim=1).float()


# ---- the parts of a block --------------------------------------------------------------------------


def linear(c_in: int, c_out: int) -> nn.Linear:
    """A linear layer as transformers start it: Xavier-uniform weights, no bias."""
    layer = nn.Linear(c_in, c_out)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def norm(width: int, affine: bool) -> nn.LayerNorm:
    """LayerNorm; with a learned scale and shift of its own where the condition brings none."""
    return nn.LayerNorm(width, eps=1e-6, elementwise_affine=affine)


def modulate(x: Float[Tensor, "b n d"], shift: Float[Tensor, "b 1 d"], scale: Float[Tensor, "b 1 d"]) -> Tensor:
    return x * (1 + scale) + shift


def mlp(width: int) -> nn.Sequential:
    return nn.Sequential(linear(width, 4 * width), nn.GELU(approximate="tanh"), linear(4 * width, width))


def adaln(width: int, vectors: int) -> nn.Sequential:
    """From the condition (b, 1, width) to that many vectors side by side; all zero at first."""
    return nn.Sequential(nn.SiLU(), zero_(nn.Linear(width, vectors * width)))


class Attention(nn.Module):
    """Self-attention: every token asks all tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = linear(width, 3 * width), linear(width, width)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        q, k, v = rearrange(self.qkv(x), "b n (three heads d) -> three b heads n d", three=3, heads=self.heads)
        return self.out(rearrange(F.scaled_dot_product_attention(q, k, v), "b heads n d -> b n (heads d)"))


class CrossAttention(nn.Module):
    """Every token of x asks the tokens of c. With one token in c the answer is the same for all who ask."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.out = linear(width, width), linear(width, 2 * width), linear(width, width)

    def forward(self, x: Float[Tensor, "b n d"], c: Float[Tensor, "b m d"]) -> Float[Tensor, "b n d"]:
        q = rearrange(self.q(x), "b n (heads d) -> b heads n d", heads=self.heads)
        k, v = rearrange(self.kv(c), "b m (two heads d) -> two b heads m d", two=2, heads=self.heads)
        return self.out(rearrange(F.scaled_dot_product_attention(q, k, v), "b heads n d -> b n (heads d)"))


# ---- the four blocks (figure 3): tokens x and condition c to tokens ----------------------------------


class AdaLNZeroBlock(nn.Module):
    """The condition scales and shifts what each branch hears, and gates what it says: the identity at first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.adaln = adaln(width, 6)
        self.norm1, self.attention = norm(width, affine=False), Attention(width, heads)
        self.norm2, self.mlp = norm(width, affine=False), mlp(width)

    def forward(self, x: Float[Tensor, "b n d"], c: Float[Tensor, "b 1 d"]) -> Float[Tensor, "b n d"]:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaln(c).chunk(6, dim=2)  # (b, 1, d) each
        x = x + gate1 * self.attention(modulate(self.norm1(x), shift1, scale1))
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))


class AdaLNBlock(nn.Module):
    """The same without gates. The paper does not say how its scale and shift start: here at zero as well, so that gates
    are all that differs."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.adaln = adaln(width, 4)
        self.norm1, self.attention = norm(width, affine=False), Attention(width, heads)
        self.norm2, self.mlp = norm(width, affine=False), mlp(width)

    def forward(self, x: Float[Tensor, "b n d"], c: Float[Tensor, "b 1 d"]) -> Float[Tensor, "b n d"]:
        shift1, scale1, shift2, scale2 = self.adaln(c).chunk(4, dim=2)  # (b, 1, d) each
        x = x + self.attention(modulate(self.norm1(x), shift1, scale1))
        return x + self.mlp(modulate(self.norm2(x), shift2, scale2))


class CrossAttentionBlock(nn.Module):
    """A standard block that also asks the condition's tokens, after self-attention. Its norms learn scale and shift:
    these are what adaLN, in the paper's words, replaces."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = norm(width, affine=True), Attention(width, heads)
        self.norm2, self.cross = norm(width, affine=True), CrossAttention(width, heads)
        self.norm3, self.mlp = norm(width, affine=True), mlp(width)

    def forward(self, x: Float[Tensor, "b n d"], c: Float[Tensor, "b m d"]) -> Float[Tensor, "b n d"]:
        x = x + self.attention(self.norm1(x))
        x = x + self.cross(self.norm2(x), c)
        return x + self.mlp(self.norm3(x))


class InContextBlock(nn.Module):
    """A standard block (ViT), as for cross-attention: the condition's tokens are among x already, treated as any other.
    They have no place in the image, so no position is added to them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = norm(width, affine=True), Attention(width, heads)
        self.norm2, self.mlp = norm(width, affine=True), mlp(width)

    def forward(self, x: Float[Tensor, "b n d"], c: Float[Tensor, "b m d"]) -> Float[Tensor, "b n d"]:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


BLOCKS = {
    "adaln-zero": AdaLNZeroBlock,
    "adaln": AdaLNBlock,
    "cross-attention": CrossAttentionBlock,
    "in-context": InContextBlock,
}

# ---- the network -----------------------------------------------------------------------------------


class DiT(nn.Module):
    """Images (b, in_channels, size, size) and noise levels (b,) to images (b, out_channels, size, size); 0 at first.

    With `classes`, forward takes y = (b,) labels; see `layers.NoiseAndClass` for the null label. Without, there is no
    label to hear: one token less in context, and cross-attention to one token, whose queries then change nothing.
    Raises ValueError for arguments that do not fit each other, and for images of another size.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int | None = None,  # in_channels by default; twice that where a variance is learned
        size: int = 8,  # side of the image, in pixels; positions are fixed for it
        patch: int = 2,  # side of a patch: halved, the cost is four times as high and more
        width: int = 64,
        depth: int = 4,  # blocks
        heads: int = 4,
        classes: int | None = None,
        conditioning: str = "adaln-zero",  # or "adaln", "cross-attention", "in-context"
        checkpoint: bool = False,  # recompute each block in the backward pass: less memory, about a third more time
    ) -> None:
        super().__init__()
        out_channels = out_channels or in_channels
        self.config = dict(
            in_channels=in_channels,
            out_channels=out_channels,
            size=size,
            patch=patch,
            width=width,
            depth=depth,
            heads=heads,
            classes=classes,
            conditioning=conditioning,
            checkpoint=checkpoint,
        )
        if size % patch:
            raise ValueError(f"patch must divide size, {size}; got {patch}")
        if width % 4:
            raise ValueError(f"width must divide by 4, for sines and cosines of two coordinates; got {width}")
        if width % heads:
            raise ValueError(f"heads must divide width, {width}; got {heads}")
        if conditioning not in BLOCKS:
            raise ValueError(f"conditioning must be one of {', '.join(map(repr, BLOCKS))}; got {conditioning!r}")
        self.patch, self.conditioning, self.checkpoint = patch, conditioning, checkpoint
        self.adaptive = conditioning in ("adaln-zero", "adaln")
        self.image = (in_channels, size, size)
        self.first = linear(patch * patch * in_channels, width)
        self.register_buffer("positions", positions(size // patch, width))
        self.emb = NoiseAndClass(width, classes, features=256)
        for layer in (self.emb.mlp[0], self.emb.mlp[2]):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        if classes is not None:
            nn.init.normal_(self.emb.label.weight, std=0.02)
        self.blocks = nn.ModuleList(BLOCKS[conditioning](width, heads) for _ in range(depth))
        # "the final layer norm (adaptive if using adaLN)", section 3.2
        self.norm = norm(width, affine=not self.adaptive)
        self.adaln = adaln(width, 2) if self.adaptive else None
        self.last = zero_(nn.Linear(width, patch * patch * out_channels))

    def forward(
        self, x: Float[Tensor, "b c h w"], noise_level: Float[Tensor, " b"], y: Tensor | None = None
    ) -> Float[Tensor, "b c2 h w"]:
        if x.shape[1:] != self.image:
            wanted = ", ".join(map(str, self.image))
            raise ValueError(f"x must be (b, {wanted}), for which this network was made; got {tuple(x.shape)}")
        h = self.first(patchify(x, self.patch)) + self.positions  # (b, tokens, width)
        c = torch.stack(self.emb.parts(noise_level, y), dim=1)  # (b, 2, width): noise level, class; or (b, 1, width)
        tokens = h.shape[1]
        if self.adaptive:
            c = c.sum(1, keepdim=True)  # (b, 1, width)
        elif self.conditioning == "in-context":
            h = torch.cat([h, c], dim=1)  # (b, tokens + 2, width)
        for block in self.blocks:
            h = recomputed(block, h, c, use_reentrant=False) if self.checkpoint else block(h, c)
        h = self.norm(h[:, :tokens])  # (b, tokens, width)
        if self.adaptive:
            h = modulate(h, *self.adaln(c).chunk(2, dim=2))
        return unpatchify(self.last(h), self.patch)  # (b, out_channels, h, w)


# ---- the paper's sizes (table 1) -------------------------------------------------------------------

SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}  # depth, width, heads


def named(name: str, patch: int) -> partial[DiT]:
    """A DiT of that size for the paper's latents of ImageNet at 256 pixels, with a learned variance. All can be
    overridden: DiT_S_2(in_channels=1, out_channels=1, size=28, classes=10)."""
    depth, width, heads = SIZES[name]
    latents = dict(in_channels=4, out_channels=8, size=32, classes=1000)
    return partial(DiT, **latents, patch=patch, depth=depth, width=width, heads=heads)


DiT_S_2, DiT_S_4, DiT_S_8 = (named("S", patch) for patch in (2, 4, 8))
DiT_B_2, DiT_B_4, DiT_B_8 = (named("B", patch) for patch in (2, 4, 8))
DiT_L_2, DiT_L_4, DiT_L_8 = (named("L", patch) for patch in (2, 4, 8))
DiT_XL_2, DiT_XL_4, DiT_XL_8 = (named("XL", patch) for patch in (2, 4, 8))
