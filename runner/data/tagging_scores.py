"""Scores of tagged words as the CoNLL-2003 shared task counts them (Tjong Kim Sang and De Meulder 2003; conlleval).

An entity is right if its type and both its ends are right.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

Chunk = tuple[int, int, str]
"""First word, the word after the last, and the type."""

_BEGIN, _END = ("B", "S"), ("E", "S")
_IN_IOBES = {"L": "E", "U": "S", "W": "S", "M": "I"}  # the letters of BILOU, BMES and BMEWO
_SCHEMES = {"LU": "BILOU", "W": "BMEWO", "M": "BMES", "S": "IOBES", "E": "IOE"}
"""Letters of which one is enough to name the scheme, and its name."""
_BEFORE = re.compile(r"(?P<letter>[BIESLUMW])[-_](?P<kind>.*)")
_BEHIND = re.compile(r"(?P<kind>.+)[-_](?P<letter>[BIESLUMW])")
_ALONE = re.compile(r"(?P<letter>[BIES])(?P<kind>)")


def in_iobes(tags: Iterable[str]) -> dict[str, str] | None:
    """The tags of entities as `chunks` reads them, by their names in the data; None if some are no such tags.

    The letter comes before the type or behind it, with - or _ between: B-PER, B_PER, PER-B.
    """
    names = set(tags) - {"O"}
    for style in (_BEFORE, _BEHIND):
        matches = {name: style.fullmatch(name) or _ALONE.fullmatch(name) for name in names}
        if all(matches.values()):
            parts = {name: (match["letter"], match["kind"]) for name, match in matches.items() if match}
            iobes = {name: f"{_IN_IOBES.get(letter, letter)}-{kind}" for name, (letter, kind) in parts.items()}
            return {"O": "O", **iobes}
    return None


def scheme(tags: Collection[str], begin_inside: int) -> str | None:
    """What is unusual about tags of entities, in words; None for IOB2 as in B-PER.

    Args:
        begin_inside: number of entities that begin with I.
    """
    marked = [tag for tag in tags if tag != "O"]
    style = _BEFORE if all(_BEFORE.fullmatch(tag) or _ALONE.fullmatch(tag) for tag in marked) else _BEHIND
    letters = {match["letter"] for tag in marked if (match := style.fullmatch(tag) or _ALONE.fullmatch(tag))}
    name = next((name for of, name in _SCHEMES.items() if letters & set(of)), None)
    if name == "IOE" and "B" in letters:
        name = "IOBES"
    if name is None and begin_inside:
        name = f"IOB1: {begin_inside} entities begin with I"
    unusual = next((tag for tag in marked if style is _BEHIND or (len(tag) > 1 and tag[1] == "_")), None)
    written = f"written as {unusual}" if unusual else None
    return ", ".join(filter(None, (name or (written and "IOB2"), written))) or None


def begin_inside(tags: Sequence[str]) -> int:
    """Number of entities of a sentence that begin with I, as in IOB1; `tags` as `in_iobes` gives them."""
    return sum(tags[start].startswith("I") for start, _, _ in chunks(tags))


def chunks(tags: Sequence[str]) -> set[Chunk]:
    """The entities of a sentence.

    Tags are `O` or a prefix and a type, `B-PER`, as IOB1, IOB2 or IOE, read as conlleval reads them, or as IOBES. An
    entity begins at B and S, and wherever a word continues nothing of its type; it ends before O, B, S or another type,
    and after E and S.
    """
    entities: set[Chunk] = set()
    start, before, kind = None, "O", ""
    for at, tag in enumerate([*tags, "O"]):
        prefix, _, now = tag.partition("-")
        inside, continues = prefix != "O", kind == now and before not in ("O", *_END) and prefix not in ("O", *_BEGIN)
        if start is not None and not continues:
            entities.add((start, at, kind))
            start = None
        if inside and start is None:
            start = at
        before, kind = prefix, now
    return entities


def counts(predicted: Sequence[str], gold: Sequence[str]) -> tuple[int, int, int]:
    """Number of right, predicted and gold entities of a sentence."""
    given, wanted = chunks(predicted), chunks(gold)
    return len(given & wanted), len(given), len(wanted)


def scores(sentences: Iterable[tuple[Sequence[str], Sequence[str]]]) -> dict[str, float]:
    """precision, recall and f1 of the entities, accuracy of the words; fractions, 0 if there is nothing to count.

    Args:
        sentences: (predicted tags, gold tags) of each, of equal lengths.
    """
    correct = predicted = wanted = right = words = 0
    for given, gold in sentences:
        if len(given) != len(gold):
            raise ValueError(f"{len(given)} tags for {len(gold)} words")
        of_one = counts(given, gold)
        correct, predicted, wanted = correct + of_one[0], predicted + of_one[1], wanted + of_one[2]
        right, words = right + sum(map(str.__eq__, given, gold)), words + len(gold)
    return {
        "f1": _over(2 * correct, predicted + wanted),
        "precision": _over(correct, predicted),
        "recall": _over(correct, wanted),
        "accuracy": _over(right, words),
    }


def _over(above: int, below: int) -> float:
    return above / below if below else 0.0
