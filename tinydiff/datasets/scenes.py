"""Scenes of a few coloured shapes: picture, maps and description all follow from one `Scene`, exactly.

Lengths are in units of the image's side, so a scene has no resolution: x runs to the right and y downwards, each from
-1/2 to 1/2. A picture is rendered once, at 64 pixels, and averaged down, so that the levels of a cascade agree to the
last bit. Pictures stay within [-0.7, 0.7]: the head-room is for thresholding, which would wash out brighter colours.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

IMAGE_SIZES = (16, 32, 64)  # pixels
RENDERED = IMAGE_SIZES[-1]
OBJECTS = 3  # the most in one scene
CROSS_ARM = 0.36  # width of the bars, as a share of the box
RING_HOLE = 0.4  # radius of the hole, as a share of the outer one
STAR_NOTCH = 0.5  # radius of the inner corners, likewise


def _box(x: Tensor, y: Tensor, w: float, h: float) -> Tensor:
    return torch.maximum(x.abs() - w, y.abs() - h)


def _star(x: Tensor, y: Tensor) -> Tensor:
    fifth = 2 * math.pi / 5
    a = (torch.remainder(torch.atan2(x, -y) + fifth / 2, fifth) - fifth / 2).abs()  # all ten edges folded onto one
    n = torch.tensor([STAR_NOTCH * math.sin(fifth / 2), 1 - STAR_NOTCH * math.cos(fifth / 2)])
    rho = torch.hypot(x, y)
    return (n[0] * (rho * a.cos() - 1) + n[1] * rho * a.sin()) / n.norm()


# Distance to the outline, negative inside, of the shape whose bounding box is [-1, 1]^2 (the star: whose corners lie on
# the unit circle). Near the outline it is the Euclidean one, save at corners.
SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": lambda x, y: torch.hypot(x, y) - 1,
    "square": lambda x, y: _box(x, y, 1.0, 1.0),
    "triangle": lambda x, y: torch.maximum(y - 1, (2 * x.abs() - y - 1) / math.sqrt(5)),
    "cross": lambda x, y: torch.minimum(_box(x, y, 1.0, CROSS_ARM), _box(x, y, CROSS_ARM, 1.0)),
    "ring": lambda x, y: (torch.hypot(x, y) - (1 + RING_HOLE) / 2).abs() - (1 - RING_HOLE) / 2,
    "star": _star,
}
FILL = {  # share of the bounding box that is covered
    "circle": math.pi / 4,
    "square": 1.0,
    "triangle": 0.5,
    "cross": 1 - (1 - CROSS_ARM) ** 2,
    "ring": math.pi / 4 * (1 - RING_HOLE**2),
    "star": 5 / 4 * STAR_NOTCH * math.sin(math.pi / 5),
}
COLOURS = {
    "red": (0.5, -0.5, -0.5),
    "green": (-0.5, 0.5, -0.5),
    "blue": (-0.5, -0.5, 0.5),
    "yellow": (0.5, 0.5, -0.5),
    "purple": (0.3, -0.5, 0.5),
    "orange": (0.5, 0.0, -0.5),
}
SIZES = ("small", "large")
TEXTURES = ("plain", "striped", "dotted")
RELATIONS = ("vertical", "horizontal")  # the first above the second, or left of it
CONTRAST = 0.2  # the lightest of a texture above its mean


class Phrase(NamedTuple):
    """What words can say of one object; None is what they leave open."""

    size: str | None
    colour: str | None
    texture: str
    shape: str


class Graph(NamedTuple):
    """What words can say of a scene: its objects from the top or left on, and how each lies to the next."""

    objects: tuple[Phrase, ...]
    relations: tuple[str, ...]


@dataclass(frozen=True)
class Object:
    """One shape. cx, cy: its centre; radius: half the side of its bounding box; all in units of the image's side."""

    shape: str
    colour: str
    size: str
    texture: str
    cx: float
    cy: float
    radius: float

    def __post_init__(self) -> None:
        for name, known in (("shape", SHAPES), ("colour", COLOURS), ("size", SIZES), ("texture", TEXTURES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}; got {getattr(self, name)!r}")


@dataclass(frozen=True)
class Scene:
    """Objects in the order in which they are painted, and the grey level behind them, in [-1, 1]."""

    objects: tuple[Object, ...]
    background: float

    @property
    def canonical(self) -> tuple[Object, ...]:
        """The objects from the top or left on: pixels do not show in which order they were painted."""
        return tuple(sorted(self.objects, key=lambda o: (o.cx + o.cy, o.cy)))

    @property
    def graph(self) -> Graph:
        objects = self.canonical
        pairs = zip(objects, objects[1:], strict=False)
        upright = [abs(b.cy - a.cy) > abs(b.cx - a.cx) for a, b in pairs]
        return Graph(
            tuple(Phrase(o.size, o.colour, o.texture, o.shape) for o in objects),
            tuple("vertical" if up else "horizontal" for up in upright),
        )


# ---- pictures ------------------------------------------------------------------------------------


@cache
def grid(size: int) -> tuple[Tensor, Tensor]:
    """x and y of the centres of the pixels, (size, size) each."""
    line = (torch.arange(size) + 0.5) / size - 0.5
    y, x = torch.meshgrid(line, line, indexing="ij")
    return x, y


@cache
def pattern(texture: str, size: int = 64) -> Float[Tensor, "size size"]:
    """What a texture adds to all three channels: stripes and dots with a period of 1/16, and a mean of zero.

    At 32 pixels, stripes are every other column, and dots one pixel in four.
    """
    x, y = grid(RENDERED)
    stripe, band = 16 * x % 1 < 0.5, 16 * y % 1 < 0.5
    if texture == "plain":
        return torch.zeros(size, size)
    light, rest = (stripe, -CONTRAST) if texture == "striped" else (stripe & band, -CONTRAST / 3)
    return down(torch.where(light, CONTRAST, rest)[None], size)[0]


def distance(o: Object, x: Float[Tensor, "h w"], y: Float[Tensor, "h w"]) -> Float[Tensor, "h w"]:
    """From (x, y) to the outline of the object, negative inside."""
    return o.radius * SHAPES[o.shape]((x - o.cx) / o.radius, (y - o.cy) / o.radius)


def coverage(o: Object, size: int = 64) -> Float[Tensor, "size size"]:
    """The share of each pixel that the object covers, to first order: clip(1/2 - distance in pixels)."""
    return (0.5 - size * distance(o, *grid(size))).clamp(0, 1)


def down(image: Float[Tensor, "c h h"], size: int) -> Float[Tensor, "c size size"]:
    """Averages over squares of pixels."""
    return image if image.shape[-1] == size else avg_pool2d(image, image.shape[-1] // size)


def render(scene: Scene, size: int = 64) -> Float[Tensor, "3 size size"]:
    """The picture, in [-0.7, 0.7] to the nearest 1/1024. Raises ValueError for a size other than 16, 32 and 64."""
    check_size(size)
    image = torch.full((3, RENDERED, RENDERED), scene.background)
    for o in scene.objects:
        cover, colour = coverage(o), torch.tensor(COLOURS[o.colour]).view(3, 1, 1)
        if o.texture != "plain":
            colour = colour + _balanced(pattern(o.texture), cover)
        image = torch.lerp(image, colour, cover)
    # multiples of 1/1024, whose means over 16 pixels are exact in float32, in whatever order they are taken
    return down((1024 * image).round() / 1024, size)


def _balanced(add: Tensor, cover: Tensor) -> Tensor:
    """The pattern such that nothing is left of it at 16 pixels, where a pixel is one period.

    A pixel on an outline may hold more of the light or of the dark: that one is weakened until they cancel.
    """
    light, dark = (down((cover * part.clamp(min=0))[None], 16) for part in (add, -add))
    least = torch.minimum(light, dark)
    light, dark = (interpolate((least / part.clamp(min=1e-6))[None], scale_factor=4)[0, 0] for part in (light, dark))
    return add * torch.where(add > 0, light, dark)


def check_size(size: int) -> None:
    if size not in IMAGE_SIZES:
        raise ValueError(f"size must be one of {', '.join(map(str, IMAGE_SIZES))} pixels; got {size}")


# ---- maps ----------------------------------------------------------------------------------------


def segmentation(scene: Scene, size: int = 64) -> Int[Tensor, "size size"]:
    """Which object the centre of each pixel lies in: 0 for none, k for the k-th from the top or left."""
    return _segments(scene, *grid(size))


def classes(scene: Scene, size: int = 64) -> Int[Tensor, "size size"]:
    """Which shape the centre of each pixel lies in: 0 for none, k for the k-th of SHAPES."""
    numbers = torch.tensor([0] + [1 + list(SHAPES).index(o.shape) for o in scene.canonical])
    return numbers[segmentation(scene, size)]


def depth(scene: Scene, size: int = 64) -> Float[Tensor, "1 size size"]:
    """The order in which the objects are painted: 0 behind all of them, 1 for the last and nearest."""
    layers = torch.tensor([0.0] + [(1 + scene.objects.index(o)) / len(scene.objects) for o in scene.canonical])
    return layers[segmentation(scene, size)][None]


def edges(scene: Scene, size: int = 64) -> Float[Tensor, "1 size size"]:
    """1 where the pixel to the right or below belongs to another object, else 0: lines one pixel wide."""
    return _outline(segmentation(scene, size))


def sketch(
    scene: Scene, size: int = 64, wobble: float = 0.015, generator: torch.Generator | None = None
) -> Float[Tensor, "1 size size"]:
    """`edges` by an unsteady hand: each point is off by up to `wobble` in x and in y, and its neighbours alike."""
    x, y = grid(size)
    phase = 2 * math.pi * torch.rand(2, generator=generator)
    waves = 2 * math.pi * (6 * torch.rand(2, 2, generator=generator) - 3)  # up to three across the image
    off = wobble * torch.sin(torch.einsum("ij,jhw->ihw", waves, torch.stack([x, y])) + phase.view(2, 1, 1))
    return _outline(_segments(scene, x + off[0], y + off[1]))


def _segments(scene: Scene, x: Tensor, y: Tensor) -> Tensor:
    segments = torch.zeros(x.shape, dtype=torch.int64)
    for o in scene.objects:
        segments[distance(o, x, y) < 0] = 1 + scene.canonical.index(o)
    return segments


def _outline(segments: Tensor) -> Tensor:
    edge = torch.zeros(segments.shape)
    edge[:, :-1] += segments[:, :-1] != segments[:, 1:]
    edge[:-1] += segments[:-1] != segments[1:]
    return edge.clamp(max=1)[None]


# ---- masks: 1 where the pixels are known, 0 where they are to be painted ---------------------------


def rectangle_mask(size: int = 64, generator: torch.Generator | None = None) -> Float[Tensor, "1 size size"]:
    """A rectangle is unknown, somewhere, with sides of 0.3 to 0.6."""
    half = 0.15 + 0.15 * torch.rand(2, generator=generator)
    centre = (2 * torch.rand(2, generator=generator) - 1) * (0.5 - half)
    return _known_outside(size, *centre.tolist(), *half.tolist())


def half_mask(size: int = 64, generator: torch.Generator | None = None) -> Float[Tensor, "1 size size"]:
    """The left, right, upper or lower half is unknown."""
    side = int(torch.randint(4, (), generator=generator))
    return _known_outside(size, *((-0.5, 0.0), (0.5, 0.0), (0.0, -0.5), (0.0, 0.5))[side], 0.5, 0.5)


def object_mask(scene: Scene, size: int = 64, generator: torch.Generator | None = None) -> Float[Tensor, "1 size size"]:
    """The bounding box of one of the objects is unknown, and a margin of 0.03, so that no edge gives it away."""
    o = scene.objects[int(torch.randint(len(scene.objects), (), generator=generator))]
    return _known_outside(size, o.cx, o.cy, o.radius + 0.03, o.radius + 0.03)


def _known_outside(size: int, cx: float, cy: float, w: float, h: float) -> Tensor:
    x, y = grid(size)
    return (_box(x - cx, y - cy, w, h) >= 0).float()[None]
