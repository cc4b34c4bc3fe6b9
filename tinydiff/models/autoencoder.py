"""The first stage of latent diffusion: autoencoders that halve an image a few times (Rombach et al. 2022, section 3.1).

    x (b, c, h, w) -(encode)-> z (b, latent, h / f, w / f) -(decode)-> x

`KLAutoencoder` has a Gaussian for each latent number, held very loosely to N(0, 1); `VQAutoencoder` has a codebook, of
which the decoder sees the nearest entry. Diffusion works on what `encode` returns: the mean, or the vector before it
is quantised, for which the codebook counts as the decoder's first layer (as in the official code).

Both carry `scale` and `shift`, measured on data by `calibrate` and saved with the weights. A `Codec` applies them, so
that diffusion sees latents of mean 0 and standard deviation 1: with more, the first steps of sampling would settle the
picture, with less the last ones (appendix D.1).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from tinydiff.models.unet import Attention, Resample, ResBlock, norm

LOGVAR = (-30.0, 20.0)  # the official code clamps it so


class Plain(nn.Module):
    """A residual block that is told nothing, and attention where it is asked for."""

    def __init__(self, c_in: int, c_out: int, look: bool = False) -> None:
        super().__init__()
        self.block = ResBlock(c_in, c_out, 0, condition="none", zero=lambda layer: layer)
        self.attention = Attention(c_out, heads=1) if look else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h w"]:
        return self.attention(self.block(x, None))


class Halve(nn.Module):
    """Half the side, by a strided convolution that pads on the right and at the bottom alone, as the official one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


def encoder(channels: int, out: int, width: int, mults: tuple[int, ...], attention: bool) -> nn.Sequential:
    """Images to feature maps of `out` channels; one halving between two entries of mults."""
    layers, c = [nn.Conv2d(channels, width, 3, padding=1)], width
    for level, mult in enumerate(mults):
        layers += [Halve(c)] * (level > 0) + [Plain(c, mult * width)]
        c = mult * width
    return nn.Sequential(*layers, Plain(c, c, attention), norm(c), nn.SiLU(), nn.Conv2d(c, out, 3, padding=1))


def decoder(latent: int, channels: int, width: int, mults: tuple[int, ...], attention: bool) -> nn.Sequential:
    """The mirror image of `encoder`. The last layer is the one at which adversarial training weighs its gradients."""
    c = mults[-1] * width
    layers = [nn.Conv2d(latent, c, 3, padding=1), Plain(c, c, attention)]
    for level, mult in reversed(list(enumerate(mults))):
        layers += [Plain(c, mult * width)]
        c = mult * width
        layers += [Resample(c, down=False)] * (level > 0)
    return nn.Sequential(*layers, norm(c), nn.SiLU(), nn.Conv2d(c, channels, 3, padding=1))


class Coded(NamedTuple):
    """What training sees of a batch.

    Attributes:
        x: (b, c, h, w), the reconstruction.
        penalty: (b,), what the latents cost: nats of the KL divergence, or the two terms of the codebook.
        codes: (b, h / f, w / f), the entries used; None without a codebook.
    """

    x: Tensor
    penalty: Tensor
    codes: Tensor | None = None


@dataclass(frozen=True)
class DiagonalGaussian:
    """N(mean, exp(logvar)) for each latent number; logvar is clamped to [-30, 20]."""

    mean: Float[Tensor, "b c h w"]
    logvar: Float[Tensor, "b c h w"]

    def __post_init__(self) -> None:
        object.__setattr__(self, "logvar", self.logvar.clamp(*LOGVAR))

    def sample(self, generator: torch.Generator | None = None) -> Float[Tensor, "b c h w"]:
        noise = torch.randn(self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + (self.logvar / 2).exp() * noise

    def kl(self) -> Float[Tensor, " b"]:
        """KL(this || N(0, 1)) in nats, summed over the latent numbers of each image."""
        return 0.5 * (self.mean**2 + self.logvar.exp() - 1 - self.logvar).flatten(1).sum(1)


class Autoencoder(nn.Module):
    """What both kinds share: networks, shapes, and the latents' scale and shift, which are saved with the weights."""

    numbers = 1  # that the encoder gives for each of a latent

    def __init__(
        self,
        in_channels: int = 1,
        latent: int = 4,  # channels of z
        width: int = 32,  # channels at the top resolution
        mults: tuple[int, ...] | list[int] = (1, 2, 2),  # channels at each resolution, in widths: f = 2^(entries - 1)
        attention: bool = False,  # at the lowest resolution
    ) -> None:
        super().__init__()
        self.config = dict(in_channels=in_channels, latent=latent, width=width, mults=list(mults), attention=attention)
        self.factor, self.latent = 2 ** (len(mults) - 1), latent
        self.encoder = encoder(in_channels, self.numbers * latent, width, tuple(mults), attention)
        self.decoder = decoder(latent, in_channels, width, tuple(mults), attention)
        self.unscaled()

    def unscaled(self) -> None:
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("shift", torch.zeros(()))

    def check(self, x: Tensor, channels: int, divides: int, name: str) -> None:
        if x.ndim != 4 or x.shape[1] != channels or x.shape[2] % divides or x.shape[3] % divides:
            divisible = f" with h and w that divide by {divides}" if divides > 1 else ""
            raise ValueError(f"{name} must be (b, {channels}, h, w){divisible}; got {tuple(x.shape)}")

    @property
    def last(self) -> nn.Parameter:
        """The weights of the decoder's last layer."""
        return self.decoder[-1].weight


class KLAutoencoder(Autoencoder):
    """A variational autoencoder with images in [-1, 1] (b, in_channels, h, w); h and w divide by `factor`.

    Raises ValueError for images or latents of another shape.
    """

    numbers = 2  # mean and log-variance

    def posterior(self, x: Float[Tensor, "b c h w"]) -> DiagonalGaussian:
        self.check(x, self.config["in_channels"], self.factor, "x")
        return DiagonalGaussian(*self.encoder(x).chunk(2, dim=1))

    def encode(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b l h2 w2"]:
        """The mean of the latents."""
        return self.posterior(x).mean

    def decode(self, z: Float[Tensor, "b l h2 w2"]) -> Float[Tensor, "b c h w"]:
        self.check(z, self.config["latent"], 1, "z")
        return self.decoder(z)

    def forward(self, x: Float[Tensor, "b c h w"], generator: torch.Generator | None = None) -> Coded:
        q = self.posterior(x)
        return Coded(self.decode(q.sample(generator)), q.kl())


class VQAutoencoder(Autoencoder):
    """The same with a codebook: each latent vector becomes its nearest entry (van den Oord et al. 2017, section 3).

    Args, beside those above:
        codes: entries of the codebook.
        beta: weight of the commitment, by which the encoder stays near the entries (equation 3 of that paper, where the
            entries' own term has weight 1). The official code of latent diffusion has beta on the entries' term instead
            by default, and calls that legacy.
    """

    def __init__(self, *shape: Any, codes: int = 256, beta: float = 0.25, **more: Any) -> None:
        super().__init__(*shape, **more)
        self.config |= dict(codes=codes, beta=beta)
        self.codebook = nn.Embedding(codes, self.latent)
        nn.init.uniform_(self.codebook.weight, -1 / codes, 1 / codes)

    def encode(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b l h2 w2"]:
        """The latent vectors before they are quantised."""
        self.check(x, self.config["in_channels"], self.factor, "x")
        return self.encoder(x)

    def nearest(self, z: Float[Tensor, "b l h w"]) -> Int[Tensor, "b h w"]:
        """The number of the entry that is nearest to each vector."""
        flat = z.movedim(1, -1).flatten(0, 2)  # (b h w, latent)
        entries = self.codebook.weight
        far = (entries**2).sum(1) - 2 * flat @ entries.T  # squared distance, less what all entries share
        return far.argmin(1).view(len(z), *z.shape[2:])

    def quantise(self, z: Float[Tensor, "b l h w"]) -> tuple[Tensor, Tensor, Int[Tensor, "b h w"]]:
        """The entries (b, l, h, w), with the gradient of z; the penalty (b,); and the numbers of the entries."""
        codes = self.nearest(z)
        entries = self.codebook(codes).movedim(-1, 1)
        mean = lambda gap: (gap**2).flatten(1).mean(1)  # noqa: E731
        penalty = mean(entries - z.detach()) + self.config["beta"] * mean(entries.detach() - z)
        return z + (entries - z).detach(), penalty, codes  # straight through: forward the entry, backward z

    def decode(self, z: Float[Tensor, "b l h2 w2"]) -> Float[Tensor, "b c h w"]:
        self.check(z, self.config["latent"], 1, "z")
        return self.decoder(self.quantise(z)[0])

    def forward(self, x: Float[Tensor, "b c h w"], generator: torch.Generator | None = None) -> Coded:
        quantised, penalty, codes = self.quantise(self.encode(x))
        return Coded(self.decoder(quantised), penalty, codes)


def codebook_use(codes: Int[Tensor, "b h w"], entries: int) -> tuple[float, float]:
    """The share of the entries that occur at all, and the perplexity: as many even entries have the same entropy."""
    share = torch.bincount(codes.flatten(), minlength=entries).double() / codes.numel()
    entropy = -(share * share.clamp(min=1e-300).log()).sum()
    return (share > 0).double().mean().item(), entropy.exp().item()


class Identity(Autoencoder):
    """No first stage: f = 1, and the latents are the pixels. With it, latent diffusion is diffusion of pixels."""

    def __init__(self, in_channels: int = 1) -> None:
        nn.Module.__init__(self)  # there are no networks
        self.config, self.factor, self.latent = dict(in_channels=in_channels), 1, in_channels
        self.unscaled()

    def encode(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x

    def decode(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return z


# ---- between pixels and diffusion ----------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Codec:
    """An autoencoder with its scale and shift, in batches, without gradients: what diffusion in latent space needs.

    encode: images (n, c, h, w) to latents (n, latent, h / f, w / f) of unit variance.
    decode: back; also by calling the codec, so that it goes into `sample(..., decode=codec)`.
    Both work where the autoencoder is, and so their results lie there.

    Raises ValueError for images or latents of another shape.
    """

    autoencoder: Autoencoder
    batch: int = 250

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n l h2 w2"]:
        a = self.autoencoder
        return torch.cat([(a.encode(part.to(a.scale.device)) - a.shift) * a.scale for part in x.split(self.batch)])

    @torch.no_grad()
    def decode(self, z: Float[Tensor, "n l h2 w2"]) -> Float[Tensor, "n c h w"]:
        a = self.autoencoder
        return torch.cat([a.decode(part.to(a.scale.device) / a.scale + a.shift) for part in z.split(self.batch)])

    __call__ = decode

    def shape(self, n: int, height: int, width: int | None = None) -> tuple[int, ...]:
        """The shape of the latents of n images of that many pixels, for `sample`. Raises ValueError for others."""
        width, f = height if width is None else width, self.autoencoder.factor
        if height % f or width % f:
            raise ValueError(f"height and width must divide by {f}; got {height} x {width}")
        return (n, self.autoencoder.latent, height // f, width // f)


@torch.no_grad()
def calibrate(autoencoder: Autoencoder, x: Float[Tensor, "n c h w"], shift: bool = True) -> Codec:
    """Measures scale = 1 / std of the latents of these images, and shift = their mean, and keeps them in the weights.

    One number each for all channels. Latent diffusion took the std of the first batch of training and no shift (shift=
    False; 0.18215 for Stable Diffusion's); Stable Diffusion 3 shifts as well. Raises ValueError for latents that are
    all equal.
    """
    autoencoder.scale.fill_(1.0)
    autoencoder.shift.fill_(0.0)
    z = Codec(autoencoder).encode(x).double()
    if not z.std() > 0:
        raise ValueError("the latents of x are all equal: an autoencoder that has learned nothing has no scale")
    autoencoder.scale.fill_(1 / z.std())
    autoencoder.shift.fill_(z.mean() if shift else 0.0)
    return Codec(autoencoder)


# ---- the discriminator ---------------------------------------------------------------------------


class PatchDiscriminator(nn.Module):
    """Images to a map of logits, each of which sees a patch of 22 pixels (Isola et al. 2017): positive means real.

    Two halvings, batch normalisation in all convolutions but the first and the last. Small images need no third one.
    """

    def __init__(self, in_channels: int = 1, width: int = 32) -> None:
        super().__init__()
        self.config = dict(in_channels=in_channels, width=width)
        conv = lambda a, b, stride: nn.Conv2d(a, b, 4, stride, padding=1)  # noqa: E731
        leaky = lambda: nn.LeakyReLU(0.2)  # noqa: E731
        self.layers = nn.Sequential(
            conv(in_channels, width, 2), leaky(),
            nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * width), leaky(),
            conv(2 * width, 1, 1),
        )  # fmt: skip
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, 0.0, 0.02)
            elif isinstance(layer, nn.BatchNorm2d):
                nn.init.normal_(layer.weight, 1.0, 0.02)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 p q"]:
        return self.layers(x)
