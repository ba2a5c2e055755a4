"""Splits of a dataset, whose rows know where they came from; subsets and hold-outs of them, drawn by a seed."""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import datasets

_SHOWN = 3  # places that a message names


@dataclass
class Part:
    """Examples, and the place of each."""

    examples: datasets.Dataset
    places: list[tuple[str, int]]
    """What was read one after the other (a file, or a split of a hub's dataset), with the number of rows of each."""
    rows: Sequence[int] = field(default_factory=list)
    """For each example its row among all that was read, from 0; all of them if not given."""

    def __post_init__(self) -> None:
        self.rows = self.rows or range(len(self.examples))

    @property
    def name(self) -> str:
        """Where all of it came from."""
        return ", ".join(place for place, _ in self.places)

    def where(self, index: int) -> str:
        """Where an example came from, for messages: "train.csv, row 12", counted from 1 without a header."""
        ends = list(itertools.accumulate(count for _, count in self.places))
        row = self.rows[index]
        at = bisect.bisect_right(ends, row)
        return f"{self.places[at][0]}, row {row - (ends[at - 1] if at else 0) + 1}"

    def where_all(self, indices: Sequence[int]) -> str:
        """Where several examples came from, the first few of them."""
        more = f" and {len(indices) - _SHOWN} more" if len(indices) > _SHOWN else ""
        return "; ".join(self.where(index) for index in indices[:_SHOWN]) + more

    def select(self, indices: Sequence[int]) -> Part:
        """Some of the examples."""
        return Part(self.examples.select(indices), self.places, [self.rows[i] for i in indices])

    def holding(self, examples: datasets.Dataset) -> Part:
        """The same rows with other columns."""
        return Part(examples, self.places, self.rows)

    def subset(self, limit: int | None, seed: int) -> Part:
        """At most `limit` examples, drawn by seed, in their order."""
        if limit is None or limit >= len(self.examples):
            return self
        return self.select(sorted(random.Random(seed).sample(range(len(self.examples)), limit)))


@dataclass
class Splits:
    """What a source has."""

    train: Part | None
    evaluation: dict[str, Part]
    """By name; the first is the one that counts. Empty if there is none."""
    source: str
    """For people, with the revision where known."""


def held_out(groups: Sequence[str], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """(rest, hold-out), indices of examples: whole groups, drawn by seed, until the hold-out has `fraction` of them.

    Args:
        groups: for each example the group that must not be on both sides, such as its paragraph.
    """
    members: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    names = sorted(members)
    random.Random(seed).shuffle(names)
    held: list[int] = []
    while names and len(held) < fraction * len(groups):
        held += members[names.pop()]
    return sorted(set(range(len(groups))) - set(held)), sorted(held)
