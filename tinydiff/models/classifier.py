"""Classifiers: one whose features judge clean images, as Inception's do in FID; one of noisy images, for guidance."""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from tinydiff.models.layers import NoiseAndClass
from tinydiff.models.unet import Attention, ResBlock, Stage, Whole, halve, norm


class ConvClassifier(nn.Module):
    """Images (b, in_channels, h, w) of any size from 16 pixels to logits (b, classes).

    `features(x)`, (b, width): what the last layer reads, before its SiLU, so that they are spread like a Gaussian
    rather than heaped at zero; a Fréchet distance takes them for one.
    """

    def __init__(self, classes: int = 10, in_channels: int = 1, width: int = 64) -> None:
        super().__init__()
        self.config = dict(classes=classes, in_channels=in_channels, width=width)
        half, twice = width // 2, 2 * width
        self.convs = nn.Sequential(
            *conv(in_channels, half), *conv(half, width, stride=2), *conv(width, width),
            *conv(width, twice, stride=2), *conv(twice, twice),
        )  # fmt: skip
        self.to_features, self.last = nn.Linear(twice, width), nn.Linear(width, classes)

    def features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b f"]:
        if x.ndim != 4 or x.shape[1] != self.config["in_channels"]:
            raise ValueError(f"x must be (b, {self.config['in_channels']}, h, w); got {tuple(x.shape)}")
        return self.to_features(self.convs(x).mean((2, 3)))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        return self.last(F.silu(self.features(x)))


class SceneClassifier(nn.Module):
    """Pictures of shapes (b, 3, size, size) to logits of what is in them: attributes of each object, and relations.

    `features(x)`, (b, width): what the heads read, before its SiLU, for Fréchet distances. Objects are told by place,
    from the top or left on, so the last map is not averaged over places. `forward` gives a list for each: the logits of
    attribute k of all objects, (b, objects, kinds[k]), and those of the relations, (b, objects - 1, relations).
    """

    def __init__(
        self,
        size: int = 32,
        width: int = 128,
        kinds: tuple[int, ...] | list[int] = (3, 7, 4, 7),  # sizes, colours, textures, shapes, each with "none"
        objects: int = 3,
        relations: int = 3,  # with "none"
    ) -> None:
        super().__init__()
        self.config = dict(size=size, width=width, kinds=list(kinds), objects=objects, relations=relations)
        halvings = {16: 2, 32: 3, 64: 4}[size]
        channels = [3, *(min(32 * 2**k, 64) for k in range(halvings))]
        layers = [conv(a, b, stride=2) + conv(b, b) for a, b in zip(channels, channels[1:], strict=False)]
        self.convs = nn.Sequential(*(layer for stage in layers for layer in stage), nn.Flatten())
        self.to_features = nn.Linear(channels[-1] * 16, width)  # of 4 x 4 places
        self.last = nn.Linear(width, objects * sum(kinds) + (objects - 1) * relations)

    def features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b f"]:
        size = self.config["size"]
        if x.shape[1:] != (3, size, size):
            raise ValueError(f"x must be (b, 3, {size}, {size}); got {tuple(x.shape)}")
        return self.to_features(self.convs(x))

    def forward(self, x: Float[Tensor, "b c h w"]) -> tuple[list[Tensor], Tensor]:
        kinds, objects = self.config["kinds"], self.config["objects"]
        out = self.last(F.silu(self.features(x)))
        each, related = out.split([objects * sum(kinds), out.shape[1] - objects * sum(kinds)], dim=1)
        return list(each.unflatten(1, (objects, -1)).split(kinds, dim=2)), related.unflatten(1, (objects - 1, -1))

    @torch.no_grad()
    def read(self, x: Float[Tensor, "b c h w"]) -> tuple[Tensor, Tensor]:
        """The likeliest attributes (b, objects, 4) and relations (b, objects - 1), as the data set numbers them."""
        attributes, relations = self(x)
        return torch.stack([logits.argmax(2) for logits in attributes], dim=2), relations.argmax(2)

    def loss(self, x: Tensor, attributes: Tensor, relations: Tensor) -> Float[Tensor, ""]:
        """The mean cross-entropy, in nats, over all that is told."""
        logits, related = self(x)
        told = [F.cross_entropy(part.flatten(0, 1), attributes[..., k].flatten()) for k, part in enumerate(logits)]
        return torch.stack([*told, F.cross_entropy(related.flatten(0, 1), relations.flatten())]).mean()


def conv(c_in: int, c_out: int, stride: int = 1) -> list[nn.Module]:
    """Batch normalisation learns fastest here; no noise level makes its batches unlike each other."""
    return [nn.Conv2d(c_in, c_out, 3, padding=1, stride=stride), nn.BatchNorm2d(c_out), nn.ReLU()]


class NoisyClassifier(nn.Module):
    """Noisy images (b, in_channels, size, size) and noise levels (b,) to logits (b, classes): ADM's classifier.

    The U-Net's encoder, halving within residual blocks, and attention in place of a mean over pixels (Dhariwal and
    Nichol 2021, section 4 and appendix H; the pooling is CLIP's). Called as a denoiser's network is.
    Raises ValueError for a size that cannot be halved often enough, and images of another shape.
    """

    def __init__(
        self,
        classes: int = 10,
        in_channels: int = 1,
        size: int = 28,
        width: int = 32,
        mults: tuple[int, ...] | list[int] = (1, 2, 3),  # channels at each resolution, in widths
        attention: tuple[bool, ...] | list[bool] = (False, True, True),  # at each resolution
        heads: int = 4,
    ) -> None:
        super().__init__()
        self.config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        self.config |= dict(mults=list(mults), attention=list(attention))
        if len(mults) != len(attention):
            raise ValueError(f"attention must have one entry a resolution, {len(mults)}; got {len(attention)}")
        if size % 2 ** (len(mults) - 1):
            raise ValueError(f"size must divide by {2 ** (len(mults) - 1)}; got {size}")
        emb, c = 4 * width, width
        self.emb, self.first = NoiseAndClass(emb, None, width), nn.Conv2d(in_channels, width, 3, padding=1)
        self.down = nn.ModuleList()
        for level, (mult, look) in enumerate(zip(mults, attention, strict=True)):
            if level > 0:
                self.down.append(Whole(ResBlock(c, c, emb, resample=halve)))
            self.down.append(Stage(ResBlock(c, mult * width, emb), attend(mult * width, heads, look)))
            c = mult * width
        self.down.append(Stage(ResBlock(c, c, emb), attend(c, heads, attention[-1])))
        self.last = nn.Sequential(norm(c), nn.SiLU())
        self.pool = AttentionPool(c, (size // 2 ** (len(mults) - 1)) ** 2, classes, heads)

    def forward(self, x: Float[Tensor, "b c h w"], noise_level: Float[Tensor, " b"]) -> Float[Tensor, "b k"]:
        shape = (self.config["in_channels"], self.config["size"], self.config["size"])
        if x.shape[1:] != shape:
            raise ValueError(f"x must be (b, {', '.join(map(str, shape))}) for this network; got {tuple(x.shape)}")
        emb, h = self.emb(noise_level), self.first(x)
        for module in self.down:
            h = module(h, emb)
        return self.pool(self.last(h))


class AttentionPool(nn.Module):
    """Feature maps (b, channels, h, w) of h w = pixels to (b, out): the mean of the pixels asks, and all answer."""

    def __init__(self, channels: int, pixels: int, out: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.place = nn.Parameter(torch.randn(pixels + 1, channels) / channels**0.5)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, out)

    def forward(self, h: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        tokens = rearrange(h, "b c h w -> b (h w) c")
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1) + self.place
        q, k, v = rearrange(self.qkv(tokens), "b n (three heads d) -> three b heads n d", three=3, heads=self.heads)
        pooled = F.scaled_dot_product_attention(q[:, :, :1].contiguous(), k.contiguous(), v.contiguous())
        return self.out(rearrange(pooled, "b heads one d -> b (heads one d)"))


def attend(channels: int, heads: int, look: bool) -> nn.Module:
    return Attention(channels, heads) if look else nn.Identity()
