"""Examples for people: excerpts of texts, and the slices of error analysis (question words, ranges of lengths)."""

import re
from collections.abc import Sequence

_QUESTION_WORDS = ("what", "who", "when", "where", "which", "why", "how")
_FORMS_OF_WHO = ("whom", "whose")
AROUND = 100
"""Characters of a paragraph that an excerpt shows on either side of an answer."""


def length_range(words: int, limits: Sequence[int], unit: str = "word") -> str:
    """The range that a number of words, or of another unit, is in, such as "5 to 10 words".

    Args:
        limits: the last number of each range, rising; numbers above the last one are a range of their own.
    """
    low = 1
    for high in limits:
        if words <= high:
            return f"{low} to {high} {unit}s" if low < high else f"{high} {unit}{'s' if high > 1 else ''}"
        low = high + 1
    return f"{low} {unit}s or more"


def question_word(question: str) -> str:
    """The first word of a question that asks: "In what year" asks what; "how many" and "how much" are one."""
    words = re.findall(r"\w+", question.lower())
    for at, word in enumerate(words):
        if word == "how" and words[at + 1 : at + 2] in (["many"], ["much"]):
            return "how many"
        if word in _QUESTION_WORDS or word in _FORMS_OF_WHO:
            return "who" if word in _FORMS_OF_WHO else word
    return "other"


def excerpt(text: str, start: int, stop: int) -> str:
    """The part of a text around its characters from `start` to `stop`, in whole words, on one line."""
    first, last = max(0, start - AROUND), min(len(text), stop + AROUND)
    while 0 < first < start and not text[first - 1].isspace():
        first += 1
    while stop < last < len(text) and not text[last].isspace():
        last -= 1
    part = " ".join(text[first:last].split())
    return ("… " if first else "") + part + (" …" if last < len(text) else "")
