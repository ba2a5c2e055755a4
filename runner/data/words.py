"""Words of a sentence and their tokens: the first token of each word, and words that have none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from runner.data import arrow

if TYPE_CHECKING:
    import datasets
    import numpy as np

NO_WORD = -1
"""Stands at tokens that are not the first of a word."""


def first_tokens(
    sentences: Sequence[Sequence[str]], rows: Sequence[int], offsets: Sequence[Sequence[tuple[int, int]]]
) -> Iterator[list[int]]:
    """For each window and token, the word that begins with the token, if no earlier window has it.

    Args:
        sentences: the words, which were joined by a blank.
        rows: the sentence of each window.
        offsets: for each window, the characters of each token; (0, 0) for special tokens.
    """
    seen: set[tuple[int, int]] = set()
    of_character: dict[int, list[int]] = {}
    for row, window in zip(rows, offsets, strict=True):
        if row not in of_character:
            # With the blank after each word, which is part of none, so that indices match the joined text.
            words = enumerate(sentences[row])
            of_character[row] = [of for word, text in words for of in [*[word] * len(text), NO_WORD]]
        began = []
        for start, stop in window:
            covered = reversed(of_character[row][start:stop])  # a blank in front is counted to some tokens
            word = next((of for of in covered if of != NO_WORD), NO_WORD)
            if (row, word) in seen:
                word = NO_WORD
            elif word != NO_WORD:
                seen.add((row, word))
            began.append(word)
        yield began


def without_tokens(examples: datasets.Dataset, features: datasets.Dataset, column: str, none: int) -> np.ndarray:
    """For each sentence the number of its words that no feature has a token for.

    Args:
        column: a list for each feature, which has another number than `none` at the first token of each word.
    """
    import numpy as np

    columns = arrow.table(features, "example", column)
    numbers, lengths = arrow.ragged(columns[column])
    sentences = np.repeat(columns["example"].to_numpy(), lengths)
    _, words = arrow.ragged(arrow.table(examples, "tokens")["tokens"])
    return words - np.bincount(sentences[numbers != none], minlength=len(words))
