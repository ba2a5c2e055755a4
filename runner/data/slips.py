"""Names of classes that look like slips of the pen, and the classes for people to look through."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher
from itertools import combinations

_MOST, _LEAST = 12, 4  # classes that are listed, of many: the most frequent and the rarest
_MISSING = {"", "nan", "none", "null", "na", "n/a", "<na>", "nat", "undefined"}
_RARE = 5  # times as frequent is the name that is meant
_CLOSE = 0.8  # of difflib's ratio


def listed(counts: Mapping[str, int]) -> str:
    """Classes with their numbers, the most frequent first; of many only some."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    entries = [f"{shown(name)} ({count:,})" for name, count in ordered]
    if len(entries) > _MOST + _LEAST + 1:
        entries[_MOST:-_LEAST] = [f"... {len(entries) - _MOST - _LEAST} more ..."]
    return ", ".join(entries)


def slips(counts: Mapping[str, int]) -> Iterator[str]:
    """What looks like a slip in the names of classes, one message for each."""
    plain = {name: _plain(name) for name in counts}
    for name in counts:
        if plain[name] in _MISSING:
            yield f"the class {shown(name)} ({counts[name]:,} times) looks like a missing label"
    for rare, usual in combinations(sorted(counts, key=counts.__getitem__), 2):
        named = f"the classes {shown(usual)} ({counts[usual]:,} times) and {shown(rare)} ({counts[rare]:,} times)"
        if plain[rare] == plain[usual]:
            yield f"{named} differ in case, blanks or the form of characters only"
        elif 0 < counts[rare] * _RARE <= counts[usual] and _is_close(rare, usual):
            yield f"{named} are almost the same name"


def _plain(name: str) -> str:
    """A name without what is easily overlooked: case, blanks, invisible characters, forms of the same character."""
    text = unicodedata.normalize("NFKC", name).casefold()
    return "".join(c for c in text if not c.isspace() and unicodedata.category(c) not in ("Cc", "Cf"))


def _is_close(rare: str, usual: str) -> bool:
    """True if one word of two names differs by a letter or two; B-PER and I-PER, class_1 and class_2, entailment and
    not_entailment, legal and illegal do not count."""
    words = [re.split(r"[\W_]+", name.casefold()) for name in (rare, usual)]
    if len(words[0]) != len(words[1]):
        return False
    differing = [(a, b) for a, b in zip(*words, strict=True) if a != b]
    if len(differing) != 1 or re.search(r"\d", "".join(differing[0])):
        return False
    ((one, other),) = differing
    if one.endswith(other) or other.endswith(one) or min(len(one), len(other)) < 3:
        return False
    return sorted(one) == sorted(other) or SequenceMatcher(None, one, other, autojunk=False).ratio() >= _CLOSE


def shown(name: str) -> str:
    """A name as a message shows it: in quotation marks, with escapes, if its characters cannot be seen."""
    plain = unicodedata.normalize("NFKC", " ".join(name.split()))
    return name if name and name.isprintable() and name == plain else ascii(name)
