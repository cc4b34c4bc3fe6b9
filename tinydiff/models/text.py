"""Text for images: a small encoder of captions, and the layers through which a U-Net hears it (Rombach et al. 2022).

    tokens (b, n) -(TextEncoder)-> text (b, n + 1, width), mask (b, n + 1) -(SpatialTransformer)-> feature maps

`WithText` puts an encoder before a network, so that both train as one and captions are dropped in the batch: a caption
of padding alone is the null caption. `Concatenated` is the other way of the paper, for conditions that are images.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tinydiff.models.layers import zero_


class MultiHead(nn.Module):
    """Tokens x (b, n, width) ask the tokens c (b, m, context): softmax(q k^T / sqrt(d)) v in each head (eq. 3).

    mask (b, m): False for those that are not to be heard; each row needs one that is. Raises ValueError unless heads
    divide width.
    """

    def __init__(self, width: int, context: int | None = None, heads: int = 4) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads must divide width, {width}; got {heads}")
        self.heads, context = heads, context or width
        self.q, self.kv = nn.Linear(width, width, bias=False), nn.Linear(context, 2 * width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "b n d"], c: Float[Tensor, "b m e"], mask: Bool[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b n d"]:
        q = rearrange(self.q(x), "b n (heads d) -> b heads n d", heads=self.heads)
        k, v = rearrange(self.kv(c), "b m (two heads d) -> two b heads m d", two=2, heads=self.heads)
        heard = None if mask is None else mask[:, None, None]  # (b, 1, 1, m)
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=heard)
        return self.out(rearrange(h, "b heads n d -> b n (heads d)"))


class GEGLU(nn.Module):
    """The feed-forward layer of these transformers: a linear half, gated by the GELU of another (Shazeer 2020)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, 8 * width), nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        h, gate = self.first(x).chunk(2, dim=-1)
        return self.second(h * F.gelu(gate))


class SpatialTransformer(nn.Module):
    """In place of attention in a U-Net: its pixels ask each other, then the text, then a feed-forward layer.

    The last layer starts at zero, so that all of it starts as the identity. The order of the text's tokens matters only
    by what their vectors hold.
    """

    def __init__(self, channels: int, context: int, heads: int, norm: nn.Module, zero=zero_) -> None:
        super().__init__()
        self.norm, self.first = norm, nn.Conv2d(channels, channels, 1)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))
        self.own, self.cross = MultiHead(channels, heads=heads), MultiHead(channels, context, heads)
        self.mlp, self.last = GEGLU(channels), zero(nn.Conv2d(channels, channels, 1))

    def forward(
        self, x: Float[Tensor, "b c h w"], text: Float[Tensor, "b m e"], mask: Bool[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b c h w"]:
        h = rearrange(self.first(self.norm(x)), "b c h w -> b (h w) c")
        asks = self.norms[0](h)
        h = h + self.own(asks, asks)
        h = h + self.cross(self.norms[1](h), text, mask)
        h = h + self.mlp(self.norms[2](h))
        return x + self.last(rearrange(h, "b (h w) c -> b c h w", h=x.shape[2]))


# ---- captions ------------------------------------------------------------------------------------


class TextEncoder(nn.Module):
    """Captions (b, length) of token numbers, 0 for padding, to vectors (b, length + 1, width) and which of them count.

    A learned start token comes first and is always heard, so that the null caption, padding alone, still says
    something. Bidirectional and pre-norm. Padding is masked here; the official code of latent diffusion attends to it.
    Raises ValueError for another length, and token numbers out of range.
    """

    def __init__(self, vocabulary: int, length: int = 20, width: int = 64, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.config = dict(vocabulary=vocabulary, length=length, width=width, depth=depth, heads=heads)
        self.words = nn.Embedding(vocabulary, width)
        self.start = nn.Parameter(torch.randn(width))
        self.places = nn.Parameter(0.02 * torch.randn(length + 1, width))
        self.blocks = nn.ModuleList(TextBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Int[Tensor, "b n"]) -> tuple[Float[Tensor, "b m d"], Bool[Tensor, "b m"]]:
        length, vocabulary = self.config["length"], self.config["vocabulary"]
        if tokens.ndim != 2 or tokens.shape[1] != length or tokens.is_floating_point():
            raise ValueError(f"tokens must be whole numbers (b, {length}); got {tuple(tokens.shape)} of {tokens.dtype}")
        unseen = tokens.is_meta or self.training and tokens.device.type != "cpu" or torch.compiler.is_compiling()
        if not unseen and not ((tokens >= 0) & (tokens < vocabulary)).all():
            raise ValueError(f"tokens must lie in 0 ... {vocabulary - 1}; got {tokens.min()} to {tokens.max()}")
        start = self.start.expand(len(tokens), 1, -1)
        h = torch.cat([start, self.words(tokens)], dim=1) + self.places
        mask = F.pad(tokens != 0, (1, 0), value=True)
        for block in self.blocks:
            h = block(h, mask)
        return self.norm(h), mask


class TextBlock(nn.Module):
    """A standard transformer block whose tokens all hear each other, but no padding."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attention, self.mlp = MultiHead(width, heads=heads), GEGLU(width)

    def forward(self, h: Float[Tensor, "b m d"], mask: Bool[Tensor, "b m"]) -> Float[Tensor, "b m d"]:
        asks = self.norms[0](h)
        h = h + self.attention(asks, asks, mask)
        return h + self.mlp(self.norms[1](h))


# ---- from net to net -----------------------------------------------------------------------------


class WithText(nn.Module):
    """A network that takes text=, mask= made one that takes tokens=, with the encoder inside, to be trained with it.

    tokens: (b, length); None is the null caption for all.
    """

    def __init__(self, net: nn.Module, encoder: TextEncoder) -> None:
        super().__init__()
        self.net, self.encoder = net, encoder
        self.config = dict(net=net, encoder=encoder)

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        noise_level: Float[Tensor, " b"],
        tokens: Tensor | None = None,
        **cond: Tensor,
    ) -> Tensor:
        if tokens is None:
            tokens = torch.zeros(len(x), self.encoder.config["length"], dtype=torch.long, device=x.device)
        text, mask = self.encoder(tokens)
        return self.net(x, noise_level, text=text, mask=mask, **cond)


class Concatenated(nn.Module):
    """A network with more input channels made one whose condition is an image: a lower resolution, a mask, a map.

    The condition `name` (b, k, h2, w2) is brought to the size of x by nearest neighbour and stacked on it, so the net
    must have been made with k more in_channels. Raises ValueError if the condition is not given.
    """

    def __init__(self, net: nn.Module, name: str) -> None:
        super().__init__()
        self.net, self.name = net, name
        self.config = dict(net=net, name=name)

    def forward(self, x: Float[Tensor, "b c h w"], noise_level: Float[Tensor, " b"], **cond: Tensor) -> Tensor:
        if self.name not in cond:
            raise ValueError(f"this network needs the condition {self.name}=, an image; got {sorted(cond) or 'none'}")
        image = F.interpolate(cond.pop(self.name).to(x), size=x.shape[2:], mode="nearest")
        return self.net(torch.cat([x, image], dim=1), noise_level, **cond)
