"""FID, the published number: the Frechet distance between Inception features of images, through torch-fidelity.

Nothing else here needs torch-fidelity, and the environment does not install it: it brings torchvision, and that brings
another torch unless told not to; what else it needs, tinydiff has. Each release of torchvision fits one of torch, and
must come from the same index (the CPU's, a CUDA version's). For torch 2.13:

    pip install --no-deps torch-fidelity
    pip install --no-deps torchvision==0.28.0    # with the --index-url that torch came from, if one was given

A value is comparable with published ones only for their data set, split, size and number of samples (mostly 50,000).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from tinydiff.metrics.frechet import Moments, frechet_distance

# uint8 images (b, 3, h, w) in, features (b, d) out
Extractor = Callable[[Tensor], Tensor]


def inception_fid(
    samples: Float[Tensor, "n c h w"],
    real: Float[Tensor, "m _ _ _"] | Moments,
    extractor: Extractor | None = None,
) -> float:
    """FID of images in [-1, 1] with one or three channels. `real`: images, or `inception_moments` of them.

    With fewer than 2,048 images the covariance is singular and the number says little but that.
    Source: Heusel et al. 2017, eq. 6.
    """
    extractor = inception_network() if extractor is None else extractor
    y = real if isinstance(real, Moments) else inception_moments(real, extractor)
    return frechet_distance(inception_moments(samples, extractor), y)


def inception_moments(
    images: Float[Tensor, "n c h w"], extractor: Extractor | None = None, batch_size: int = 64
) -> Moments:
    """Mean and covariance of the features of images in [-1, 1]; values beyond are clipped, one channel is repeated.

    The extractor sees 8-bit images, because published statistics are of those.
    Raises ValueError for another number of channels, fewer than two images, or values that are not finite.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images must have shape (n, 1, h, w) or (n, 3, h, w), got {tuple(images.shape)}")
    if not images.isfinite().all():
        raise ValueError("images must be finite, got values that are nan or infinite")
    extractor = inception_network() if extractor is None else extractor
    with torch.no_grad():
        return Moments.of(extractor(to_uint8(batch)) for batch in images.split(batch_size))


def to_uint8(images: Float[Tensor, "b c h w"]) -> Tensor:
    """Images in [-1, 1] -> (b, 3, h, w) of 0 ... 255, to the nearest level."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1)


def inception_network(device: str = "cpu", weights: str | None = None) -> Extractor:
    """torch-fidelity's Inception network of 2015, with 2,048 features.

    It resizes to 299 x 299 itself, as TensorFlow 1 did. Its documentation ("Numerical precision", CIFAR-10) gives a
    relative difference of 1e-6 between its FID and the original code's.

    Args:
        weights: path of the file of weights; by default torch-fidelity fetches it, once.

    Raises ImportError if torch-fidelity cannot be imported.
    """
    try:
        from torch_fidelity import FeatureExtractorInceptionV3
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that was built for another torch
        raise ImportError(
            "Inception FID needs torch-fidelity and a torchvision that fits your torch, from the same index; for torch "
            f"2.13: pip install --no-deps torch-fidelity torchvision==0.28.0 (see {__name__}); got: {error}"
        ) from error
    net = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=weights).to(device)
    return lambda images: net(images.to(device))[0]
