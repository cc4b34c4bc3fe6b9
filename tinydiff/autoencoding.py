"""Training the first stage of latent diffusion (Rombach et al. 2022, section 3.1 and appendix G; Esser et al. 2021).

    (1)  L = mean |x - x'| + features(x, x') + weight penalty + [late] w_d w_a (-mean D(x'))

`features` compares what a classifier sees in image and reconstruction. The penalty is the autoencoder's own: with a KL
of weight 1e-6 the latents are hardly held at all. D is a discriminator of patches, learning beside by its hinge loss,
and both are switched on late, once reconstructions are good. w_a makes the adversarial gradient at the decoder's last
layer as large as that of the first two terms.

Equation (1) is the official code's, all divided by the number of pixels; its further parameter, a log-variance, was
never given to its optimiser and stays at zero, and so it is left out.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tinydiff.models import ConvClassifier, PatchDiscriminator, SceneClassifier
from tinydiff.models.autoencoder import Autoencoder
from tinydiff.progress import progress
from tinydiff.training import constant, random_numbers_of, to_batches


class FeatureDistance(nn.Module):
    """How unlike two images (b, c, h, w) are to a classifier: (b,), zero for equal ones.

    After each ReLU the vectors of all places are brought to length one; their squared distance is averaged over places
    and summed over layers. It is what LPIPS does (Zhang et al. 2018), without that paper's network of photographs and
    without its weights of channels, so it is not called so.
    """

    def __init__(self, classifier: ConvClassifier | SceneClassifier) -> None:
        super().__init__()
        self.layers = copy.deepcopy(classifier.convs).eval().requires_grad_(False)  # a judge stays as and where it is

    def train(self, mode: bool = True) -> "FeatureDistance":
        return super().train(False)  # its batch normalisation never learns

    def forward(self, x: Float[Tensor, "b c h w"], y: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        total = torch.zeros(len(x), device=x.device)
        for layer in self.layers:
            x, y = layer(x), layer(y)
            if isinstance(layer, nn.ReLU):
                gap = F.normalize(x, dim=1, eps=1e-6) - F.normalize(y, dim=1, eps=1e-6)
                total = total + (gap**2).sum(1).flatten(1).mean(1)
        return total


def hinge_loss(real: Tensor, fake: Tensor) -> Float[Tensor, ""]:
    """The discriminator's: real logits above 1, others below -1, and no more is asked."""
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def adaptive_weight(
    loss: Float[Tensor, ""], adversarial: Float[Tensor, ""], last: Tensor, most: float = 1e4
) -> Float[Tensor, ""]:
    """|grad loss| / |grad adversarial| at the weights `last`, at most `most`, without gradient (Esser et al., eq. 7).

    So the adversarial term counts the same whatever the scale of its logits.
    """
    size = lambda value: torch.autograd.grad(value, last, retain_graph=True)[0].norm()  # noqa: E731
    return (size(loss) / (size(adversarial) + 1e-4)).clamp(max=most).detach()


class AutoencoderStep(NamedTuple):
    """After a step of training.

    Attributes:
        number: from 1.
        losses: what equation (1) is made of, by name, and the discriminator's own loss once it learns.
        autoencoder, discriminator: the networks, in training.
    """

    number: int
    losses: dict[str, float]
    autoencoder: Autoencoder
    discriminator: PatchDiscriminator | None


def fit_autoencoder(
    autoencoder: Autoencoder,
    data: Any,
    *,
    steps: int,
    batch_size: int = 64,
    lr: float = 1e-3,
    seed: int = 0,
    penalty: float | None = None,
    squared: float | int = 0.0,
    features: FeatureDistance | None = None,
    discriminator: PatchDiscriminator | None = None,
    start: float = 0.5,
    adversarial: float = 0.5,
    lr_schedule: Callable[[int, int], float] = constant,
) -> Iterator[AutoencoderStep]:
    """Trains in place, by equation (1), and yields after each step. Step k's random numbers depend on (seed, k) alone.

    Args:
        data: images, as `fit` takes them; conditions are left aside.
        penalty: weight of the autoencoder's own penalty; None is the official 1e-6 for a KL summed over the latents
            (and divided by the pixels, as all of (1) is), and 1 for a codebook.
        squared: weight of the mean squared error, beside the absolute one of (1), which has 1. Captioned shapes of 64
            pixels had their dots by it, and not without (notebook 16).
        start: share of the steps after which the discriminator comes in.
        adversarial: w_d; 0.5 with a KL and 0.75 with a codebook in the official settings.
        lr: of both optimisers, Adam with betas 0.5 and 0.9.

    Raises ValueError for a start outside [0, 1] or squared < 0, FloatingPointError as soon as a loss is not finite.
    """
    if not 0 <= start <= 1:
        raise ValueError(f"start must lie in [0, 1], a share of the steps; got {start}")
    if squared < 0:
        raise ValueError(f"squared must be at least 0; got {squared}")
    device = next(autoencoder.parameters()).device
    adam = lambda net: torch.optim.Adam(net.parameters(), lr=lr, betas=(0.5, 0.9))  # noqa: E731
    opt, second = adam(autoencoder.train()), None if discriminator is None else adam(discriminator.train())
    batches, bar = to_batches(data, batch_size), progress(range(steps), desc="training", total=steps)
    for k in bar:
        with random_numbers_of(seed, k, device):
            x = next(batches)["x0"].to(device)
            out = autoencoder(x)
        loss = {"pixels": (x - out.x).abs().mean()}
        if squared:
            loss["squared"] = squared * (x - out.x).square().mean()
        if features is not None:
            loss["features"] = features(x, out.x).mean()
        nll = sum(loss.values())
        weight = (1.0 if out.codes is not None else 1e-6 / x[0].numel()) if penalty is None else penalty
        loss["penalty"] = weight * out.penalty.mean()
        late = discriminator is not None and k >= start * steps
        if late:
            fooled = -discriminator(out.x).mean()
            loss["adversarial"] = adversarial * adaptive_weight(nll, fooled, autoencoder.last) * fooled
        _step(opt, sum(loss.values()), lr * lr_schedule(k, steps), k)
        if late:
            loss["discriminator"] = hinge_loss(discriminator(x), discriminator(out.x.detach()))
            _step(second, loss["discriminator"], lr * lr_schedule(k, steps), k)
        said = {name: value.item() for name, value in loss.items()}
        bar.set_postfix({name: f"{value:.3g}" for name, value in said.items()}, refresh=False)
        yield AutoencoderStep(k + 1, said, autoencoder, discriminator)


def _step(opt: torch.optim.Optimizer, loss: Tensor, lr: float, k: int) -> None:
    if not loss.isfinite():
        raise FloatingPointError(f"the loss is {loss.item()} at step {k + 1}: try a smaller lr")
    for group in opt.param_groups:
        group["lr"] = lr
    opt.zero_grad()
    loss.backward()
    opt.step()


# ---- how good a first stage is -------------------------------------------------------------------


def psnr(x: Float[Tensor, "b *d"], y: Float[Tensor, "b *d"]) -> Float[Tensor, " b"]:
    """Peak signal-to-noise ratio of images in [-1, 1], in decibels: 10 log10(4 / mean squared error)."""
    return 10 * torch.log10(4 / ((x - y) ** 2).flatten(1).mean(1))


def sharpness(x: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """The share of an image's energy, its mean left out, at more than half of the highest frequency in either axis."""
    power = torch.fft.fft2(x.double()).abs() ** 2
    power[..., 0, 0] = 0
    rows, columns = (torch.fft.fftfreq(n, device=x.device).abs() for n in x.shape[2:])
    fine = (rows[:, None] > 0.25) | (columns[None] > 0.25)
    return ((power * fine).flatten(1).sum(1) / power.flatten(1).sum(1)).to(x.dtype)
