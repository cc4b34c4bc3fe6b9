"""Does a picture of shapes show what its caption asks for? Attribute by attribute, and all at once.

Both sides are (attributes, relations) as the data set has them: (n, 3, 4) and (n, 2), objects from the top or left on,
so that "A above B" and "B below A" are one. `read_shapes` reads pictures by the oracle, without learning; a classifier
that says the same of the same pictures is a check on either.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tinydiff.datasets import captions, oracle
from tinydiff.progress import progress

KINDS = ("size", "colour", "texture", "shape")


class Read(NamedTuple):
    """What is in n pictures, or asked for: 0 for none, else the number of the word, from 1."""

    attributes: Int[Tensor, "n 3 4"]
    relations: Int[Tensor, "n 2"]


class Attributes(NamedTuple):
    """Shares, each in [0, 1].

    Attributes:
        size, colour, texture, shape: of the objects asked for, read right in their place.
        objects: pictures with as many objects as were asked for.
        relation: relations read right, of those asked for; NaN if none was.
        binding: objects whose shape is right that have the right colour too.
        exact: pictures with nothing wrong.
    """

    size: float
    colour: float
    texture: float
    shape: float
    objects: float
    relation: float
    binding: float
    exact: float


def read_shapes(images: Float[Tensor, "n 3 h h"]) -> Read:
    """What the oracle reads, of pictures of 32 or 64 pixels: 3 to 8 ms each. More than three objects count as three."""
    return described(oracle.read(image).graph for image in progress(images.cpu(), desc="reading shapes"))


def described(graphs: Iterable) -> Read:
    """The numbers of graphs, as `captions.parse` or `Scene.graph` give them; objects beyond the third are left out."""
    rows = [(captions.attributes(_few(g)), captions.relations(_few(g))) for g in graphs]
    return Read(*(torch.stack(parts) for parts in zip(*rows, strict=True)))


def _few(graph):
    return graph._replace(objects=graph.objects[:3], relations=graph.relations[:2])


def attribute_accuracy(read: Read, asked: Read, textures: bool = True) -> Attributes:
    """How much of what was asked for is there.

    textures: False leaves them out of `exact`, where a picture is too small or too blurred to show them.
    Raises ValueError for numbers of pictures that differ.
    """
    if read.attributes.shape != asked.attributes.shape or not len(asked.attributes):
        raise ValueError(
            f"read and asked must be of as many pictures; got {len(read.attributes)} and {len(asked.attributes)}"
        )
    wanted = asked.attributes[..., 3] > 0  # (n, 3): objects asked for
    right = read.attributes == asked.attributes  # (n, 3, 4)
    share = lambda hits, of: (hits & of).sum().item() / of.sum().item() if of.any() else float("nan")  # noqa: E731
    each = {kind: share(right[..., k], wanted) for k, kind in enumerate(KINDS)}
    related = asked.relations > 0
    whole = right if textures else right[..., [0, 1, 3]]
    same = (read.attributes[..., 3] > 0).sum(1) == wanted.sum(1)
    exact = whole.flatten(1).all(1) & (read.relations == asked.relations).all(1)
    return Attributes(
        **each,
        objects=same.double().mean().item(),
        relation=share(read.relations == asked.relations, related),
        binding=share(right[..., 1], wanted & right[..., 3]),
        exact=exact.double().mean().item(),
    )
