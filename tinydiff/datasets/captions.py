"""Words for scenes: "a small red circle above a large blue square", there and back, and as numbers.

    caption = phrase (relation phrase){0, 1, 2}      relation = above | below | left of | right of
    phrase  = "a" size colour [texture] shape        texture  = striped | dotted, or nothing for plain

"A above B" and "B below A" are one picture, so a caption as such begins at the top or left, and `parse` gives both the
same graph. There are 22 words, and six synonyms.
"""

import re

import torch
from jaxtyping import Int
from torch import Tensor

from tinydiff.datasets.scenes import COLOURS, OBJECTS, RELATIONS, SHAPES, SIZES, TEXTURES, Graph, Phrase, Scene

FORWARD = {"vertical": "above", "horizontal": "left of"}
BACKWARD = {"vertical": "below", "horizontal": "right of"}
SYNONYMS = {"small": "tiny", "large": "big", "circle": "disc", "square": "box", "above": "over", "below": "under"}
WORDS = ("a", *SIZES, *COLOURS, *TEXTURES[1:], *SHAPES, "above", "below", "left", "right", "of")
VOCABULARY = ("", *WORDS, *SYNONYMS.values())  # a word's number is its place; 0 is padding
ADJECTIVES = {"size": SIZES, "colour": COLOURS, "texture": TEXTURES[1:]}
LENGTH = 20  # three phrases of five words and two relations of two are 19


def caption(
    scene: Scene,
    synonyms: bool = False,
    shuffle: bool = False,
    reverse: bool = False,
    colour: bool = True,
    generator: torch.Generator | None = None,
) -> str:
    """The scene in words. As such it is the same for the same graph; three options draw from the generator.

    Args:
        synonyms: each word that has a synonym gives way to it half of the time.
        shuffle: adjectives come in any order.
        reverse: half of the time from the bottom or right on, with "below" and "right of".
        colour: False leaves the colours out.
    """

    def coin() -> bool:
        return bool(torch.rand((), generator=generator) < 0.5)

    def phrase(o: Phrase) -> list[str]:
        adjectives = [o.size] + [o.colour] * colour + [o.texture] * (o.texture != "plain")
        if shuffle:
            adjectives = [adjectives[i] for i in torch.randperm(len(adjectives), generator=generator).tolist()]
        return ["a", *adjectives, o.shape]

    (objects, relations), say = scene.graph, FORWARD
    if reverse and coin():
        objects, relations, say = objects[::-1], relations[::-1], BACKWARD
    words = [word for o in objects[:1] for word in phrase(o)]
    for relation, o in zip(relations, objects[1:], strict=True):
        words += [*say[relation].split(), *phrase(o)]
    return " ".join(SYNONYMS[w] if synonyms and w in SYNONYMS and coin() else w for w in words)


def parse(text: str) -> Graph:
    """The graph that a caption describes: `parse(caption(scene)) == scene.graph`. A size or colour not said is None.

    Raises ValueError, with the phrase, for what is not a caption.
    """
    plain = {synonym: word for word, synonym in SYNONYMS.items()}
    text = " ".join(plain.get(word, word) for word in text.split())
    pieces = re.split(r" (above|below|left of|right of) ", text)
    objects, said = tuple(_parse_phrase(piece) for piece in pieces[::2]), pieces[1::2]
    for say, step in ((FORWARD, 1), (BACKWARD, -1)):
        names = {words: relation for relation, words in say.items()}
        if all(words in names for words in said):
            return Graph(objects[::step], tuple(names[words] for words in said)[::step])
    raise ValueError(f"a caption goes one way, down and right or up and left; got {text!r}")


def _parse_phrase(text: str) -> Phrase:
    words = text.split()
    if len(words) < 2 or words[0] != "a" or words[-1] not in SHAPES:
        raise ValueError(f'a phrase begins with "a" and ends in one of {", ".join(SHAPES)}; got {text!r}')
    said: dict[str, str] = {}
    for word in words[1:-1]:
        kinds = [kind for kind, known in ADJECTIVES.items() if word in known and kind not in said]
        if not kinds:
            raise ValueError(f"a phrase has at most one size, colour and texture before the shape; got {text!r}")
        said[kinds[0]] = word
    return Phrase(said.get("size"), said.get("colour"), said.get("texture", "plain"), words[-1])


def tokens(text: str, length: int = LENGTH) -> Int[Tensor, " length"]:
    """The numbers of the words in VOCABULARY, int64, and 0 up to the length.

    Raises ValueError for an unknown word, or for more words than `length`.
    """
    words = text.split()
    if unknown := [word for word in words if word not in VOCABULARY]:
        raise ValueError(f"text may only use the words of VOCABULARY; got {unknown[0]!r} in {text!r}")
    if len(words) > length:
        raise ValueError(f"length must be at least {len(words)}, the number of words; got {length}")
    return torch.tensor([VOCABULARY.index(word) for word in words] + [0] * (length - len(words)))


def words(numbers: Int[Tensor, " length"]) -> str:
    """The caption again: `words(tokens(text)) == text`."""
    return " ".join(VOCABULARY[k] for k in numbers.tolist() if k)


def attributes(graph: Graph) -> Int[Tensor, "3 4"]:
    """Size, colour, texture and shape of each object, one row each: 1 for the first of SIZES, COLOURS, ..., 0 for none.

    Raises ValueError for more than three objects.
    """
    if len(graph.objects) > OBJECTS:
        raise ValueError(f"graph must have at most {OBJECTS} objects; got {len(graph.objects)}")
    kinds = [["", *known] for known in (SIZES, COLOURS, TEXTURES, SHAPES)]
    rows = [[kind.index(word or "") for kind, word in zip(kinds, o, strict=True)] for o in graph.objects]
    return torch.tensor(rows + [[0] * 4] * (OBJECTS - len(rows)))


def relations(graph: Graph) -> Int[Tensor, " 2"]:
    """How each object lies to the next: 1 above it, 2 left of it, 0 where there is no next."""
    numbers = [1 + RELATIONS.index(r) for r in graph.relations]
    return torch.tensor(numbers + [0] * (OBJECTS - 1 - len(numbers)))
