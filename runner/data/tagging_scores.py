"""Scores of tagged words as the CoNLL-2003 shared task counts them (Tjong Kim Sang and De Meulder 2003; conlleval).

An entity is right if its type and both its ends are right.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Chunk = tuple[int, int, str]
"""First word, the word after the last, and the type."""

_BEGIN, _END = ("B", "S"), ("E", "S")


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
