"""The captioned shapes: `shapes("shapes32-2", split="train")`, drawn on demand, with no files.

Item i of a split depends on (seed, split, i) alone: the same on every process, whatever was drawn before. Each test
split asks for one thing that training has never shown, and for that alone:

| split | what is new |
| --- | --- |
| train, val, test-iid | nothing: three streams of one law |
| test-pair | a shape in a colour that it never has (the k-th of four in the next colour) |
| test-rel | two colours in a relation in which they never are, though in the other one, and swapped, they are |
| test-length | three objects, as large as they always are and as far apart |
| test-ood | a ring or star, purple or orange |

Items per second of one core: 4,500, 2,900 and 1,900 of the three presets, and with tokens and edges 2,300, 1,600 and
1,200. The size asked for changes little, as all are rendered at 64 pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from tinydiff.datasets import captions, scenes
from tinydiff.datasets.scenes import COLOURS, RELATIONS, SHAPES, SIZES, TEXTURES, Graph, Object, Scene
from tinydiff.progress import progress


@dataclass(frozen=True)
class Preset:
    """size: pixels, unless others are asked for. counts: how many objects, each as often. textures: those in use."""

    size: int
    counts: tuple[int, ...]
    textures: tuple[str, ...]


PRESETS = {
    "shapes16-1": Preset(16, (1,), ("plain",)),
    "shapes32-2": Preset(32, (1, 2), ("plain",)),
    "shapes64-2t": Preset(64, (1, 2), TEXTURES),
}
SPLITS = {  # what is new in each; like STREAMS, numbers of their random streams, so the order never changes
    "train": set(),
    "val": set(),
    "test-iid": set(),
    "test-pair": {"pair"},
    "test-rel": {"rel"},
    "test-length": {"length"},
    "test-ood": {"ood"},
}
KNOWN_SHAPES, KNOWN_COLOURS = tuple(SHAPES)[:4], tuple(COLOURS)[:4]
# Latin squares: each shape, colour and relation is still seen equally often.
HELD_PAIRS = {(shape, KNOWN_COLOURS[(i + 1) % 4]) for i, shape in enumerate(KNOWN_SHAPES)}
HELD_TRIPLES = {  # (colour, relation, colour)
    (KNOWN_COLOURS[i], relation, KNOWN_COLOURS[(i + step) % 4])
    for relation, step in zip(RELATIONS, (1, -1), strict=True)
    for i in range(4)
}

# Radii at 16 pixels must be at least 0.17 of the side, or a classifier cannot tell the shapes (measured: 79 % at 0.13).
RADII = {"small": (0.17, 0.17), "large": (0.26, 0.24)}  # of one object alone, of several
OFFSET, JITTER = 0.26, 0.03  # of two objects from the middle
EDGE, GAP = 0.02, 0.04  # least distance of a single object from the edge, and of two from each other
LAYOUTS = {  # cells of the objects, -1, 0 or 1 to the right and down
    1: [[(0, 0)]],
    2: [[(0, -1), (0, 1)], [(-1, 0), (1, 0)]],
    3: [[(-1, -1), (1, -1), (1, 1)], [(-1, -1), (-1, 1), (1, 1)]],  # right and down, or down and right
}


def novelty(graph: Graph) -> set[str]:
    """What there is in a scene that training never shows: any of "pair", "rel", "length" and "ood"."""
    colours = [o.colour for o in graph.objects]
    triples = set(zip(colours, graph.relations, colours[1:], strict=False))
    new = {
        "pair": any((o.shape, o.colour) in HELD_PAIRS for o in graph.objects),
        "rel": not triples.isdisjoint(HELD_TRIPLES),
        "length": len(graph.objects) > 2,
        "ood": any(o.shape not in KNOWN_SHAPES or o.colour not in KNOWN_COLOURS for o in graph.objects),
    }
    return {name for name, found in new.items() if found}


def draw(preset: Preset, split: str, generator: torch.Generator) -> Scene:
    """A scene by the law of the split: drawn anew until what is new in it is what the split asks for."""

    def pick(options: Sequence) -> Any:
        return options[int(torch.randint(len(options), (), generator=generator))]

    new = SPLITS[split]
    colours, shapes_ = (tuple(COLOURS), tuple(SHAPES)) if "ood" in new else (KNOWN_COLOURS, KNOWN_SHAPES)
    count = 3 if "length" in new else 2 if "rel" in new else pick(preset.counts)
    while True:
        objects = []
        for cell in pick(LAYOUTS[count]):
            size = pick(SIZES)
            radius = RADII[size][count > 1]
            cx, cy = (_place(c, radius, count, float(torch.rand((), generator=generator))) for c in cell)
            objects.append(Object(pick(shapes_), pick(colours), size, pick(preset.textures), cx, cy, radius))
        order = torch.randperm(count, generator=generator).tolist()
        scene = Scene(tuple(objects[i] for i in order), 0.8 * float(torch.rand((), generator=generator)) - 0.4)
        distinct = len({(o.shape, o.colour) for o in objects}) == count
        if distinct and novelty(scene.graph) == new:
            return scene


def _place(cell: int, radius: float, count: int, u: float) -> float:
    """A coordinate of a centre, for u in [0, 1]: within its cell, clear of the edge and of the other cell."""
    if count == 1:
        return (2 * u - 1) * (0.5 - EDGE - radius)
    jitter = JITTER * (2 * u - 1)
    return cell * min(max(OFFSET + jitter, radius + GAP / 2), 0.5 - radius) if cell else jitter


# ---- the data set --------------------------------------------------------------------------------

CONDITIONS: dict[str, Callable[["Shapes", int, Scene], Tensor]] = {  # data set, index and scene -> what to add
    "tokens": lambda d, i, s: captions.tokens(d.words(s, generator=d.generator(i, "caption"))),
    "attributes": lambda d, i, s: captions.attributes(s.graph),
    "relations": lambda d, i, s: captions.relations(s.graph),
    "segmentation": lambda d, i, s: scenes.segmentation(s, d.size),
    "classes": lambda d, i, s: scenes.classes(s, d.size),
    "depth": lambda d, i, s: scenes.depth(s, d.size),
    "edges": lambda d, i, s: scenes.edges(s, d.size),
    "sketch": lambda d, i, s: scenes.sketch(s, d.size, generator=d.generator(i, "sketch")),
    "rectangle_mask": lambda d, i, s: scenes.rectangle_mask(d.size, d.generator(i, "rectangle")),
    "half_mask": lambda d, i, s: scenes.half_mask(d.size, d.generator(i, "half")),
    "object_mask": lambda d, i, s: scenes.object_mask(s, d.size, d.generator(i, "object")),
}
STREAMS = ("scene", "caption", "sketch", "rectangle", "half", "object")


@dataclass(frozen=True)
class Shapes(Dataset):
    """What `shapes` returns: a data set for `td.fit` or a loader, whose items are dicts of tensors."""

    preset: Preset
    split: str
    n: int
    size: int
    seed: int
    conditions: tuple[str, ...]
    words: Callable[..., str]

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        """x0 of shape (3, size, size) in [-0.7, 0.7], and each of the conditions under its name.

        Raises IndexError unless 0 <= i < n.
        """
        scene = self.scene(i)
        x0 = scenes.render(scene, self.size)
        return {"x0": x0} | {name: CONDITIONS[name](self, i, scene) for name in self.conditions}

    def generator(self, i: int, stream: str) -> torch.Generator:
        """Random numbers that depend on (seed, split, i, stream) alone."""
        if not 0 <= i < self.n:
            raise IndexError(f"i must lie in 0 ... {self.n - 1}; got {i}")
        import numpy as np

        key = np.random.SeedSequence([self.seed, list(SPLITS).index(self.split), int(i), STREAMS.index(stream)])
        return torch.Generator().manual_seed(int(key.generate_state(1, np.uint64)[0]))

    def scene(self, i: int) -> Scene:
        return draw(self.preset, self.split, self.generator(i, "scene"))

    def caption(self, i: int) -> str:
        return self.words(self.scene(i), generator=self.generator(i, "caption"))

    def image(self, i: int, size: int | None = None) -> Float[Tensor, "3 h w"]:
        """The picture at 16, 32 or 64 pixels: the smaller ones are averages of the larger, to the last bit."""
        return scenes.render(self.scene(i), self.size if size is None else size)

    def tensors(self, n: int | None = None, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """The first n items (None: all), stacked, with a progress bar.

        dtype: of x0 and the maps that are not int64. torch.uint8 takes a quarter of the memory: x0 to the nearest of
        256 levels, x0 = k / 127.5 - 1, as in `Images`, and maps and masks, which lie in [0, 1], times 255.
        Raises ValueError unless 1 <= n <= len(self), or for another dtype.
        """
        n = self.n if n is None else n
        if dtype not in (torch.float32, torch.uint8):
            raise ValueError(f"dtype must be torch.float32 or torch.uint8; got {dtype}")
        if not 1 <= n <= self.n:
            raise ValueError(f"n must lie in 1 ... {self.n}; got {n}")
        out: dict[str, Tensor] = {}
        for i in progress(range(n), desc="drawing shapes"):
            for name, value in self[i].items():
                if dtype == torch.uint8 and value.is_floating_point():
                    value = ((value + 1) * 127.5 if name == "x0" else value * 255).round().to(dtype)
                if not i:
                    out[name] = torch.empty((n, *value.shape), dtype=value.dtype)
                out[name][i] = value
        return out


def shapes(
    preset: str = "shapes32-2",
    split: str = "train",
    n: int = 10_000,
    size: int | None = None,
    seed: int = 0,
    conditions: tuple[str, ...] = (),
    caption: Callable[..., str] = captions.caption,
) -> Shapes:
    """Pictures of coloured shapes with exact captions, labels and maps: `shapes(conditions=("tokens",))[0]`.

    Args:
        preset: "shapes16-1" (one object), "shapes32-2" (one or two), "shapes64-2t" (one or two, with textures).
        split: "train", "val", "test-iid", "test-pair", "test-rel", "test-length" or "test-ood", as in the table above;
            "shapes16-1", with one object, has neither "test-rel" nor "test-length".
        n: how many there are; a longer set begins with the shorter one.
        size: 16, 32 or 64 pixels, the preset's own if None.
        seed: zero or more. conditions: names from CONDITIONS, which become the keys of the items beside "x0".
        caption: (scene, generator=) -> str, such as functools.partial(td.datasets.captions.caption, synonyms=True).

    Raises ValueError for an unknown preset, split, size or condition, n < 1 and seed < 0.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}; got {preset!r}")
    several = max(PRESETS[preset].counts) > 1
    splits = [name for name, new in SPLITS.items() if several or new.isdisjoint({"rel", "length"})]
    if split not in splits:
        raise ValueError(f"split of {preset} must be one of {', '.join(splits)}; got {split!r}")
    if n < 1 or seed < 0:
        name, value, least = ("n", n, 1) if n < 1 else ("seed", seed, 0)
        raise ValueError(f"{name} must be at least {least}; got {value}")
    size = PRESETS[preset].size if size is None else size
    scenes.check_size(size)
    if unknown := [name for name in conditions if name not in CONDITIONS]:
        raise ValueError(f"conditions must be among {', '.join(CONDITIONS)}; got {unknown[0]!r}")
    return Shapes(PRESETS[preset], split, n, size, seed, tuple(conditions), caption)
