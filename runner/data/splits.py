"""Splits of a dataset, whose rows know their file and line; renamed columns; subsets and hold-outs, drawn by a seed."""

from __future__ import annotations

import bisect
import itertools
import random
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.data import arrow
from runner.data.text_files import place
from runner.system.errors import UserError

if TYPE_CHECKING:
    import datasets

SPLIT = "split"
"""The column that names each example's evaluation split, if there are several."""
_OF_METRICS = re.compile(r"[\w.\- ]{1,100}")
_SHOWN = 3  # places that a message names


@dataclass
class Part:
    """Examples, and the place of each."""

    examples: datasets.Dataset
    places: list[tuple[str, int]]
    """What was read one after the other (a file, or a split of a hub's dataset), with the number of rows of each."""
    rows: Sequence[int] = field(default_factory=list)
    """For each example its row among all that was read, from 0; not given: all of them."""

    def __post_init__(self) -> None:
        self.rows = self.rows or range(len(self.examples))

    @property
    def name(self) -> str:
        """The files or splits that the examples came from."""
        return ", ".join(place for place, _ in self.places)

    @property
    def described(self) -> str:
        """The files or splits that the examples came from, with the number of rows of each."""
        return ", ".join(f"{place} ({count:,})" for place, count in self.places)

    def where(self, index: int) -> str:
        """An example's place, for messages: "train.csv, line 13"; "train.parquet, row 12", where rows have no lines."""
        ends = list(itertools.accumulate(count for _, count in self.places))
        row = self.rows[index]
        at = bisect.bisect_right(ends, row)
        return place(self.places[at][0], row - (ends[at - 1] if at else 0))

    def where_all(self, indices: Sequence[int]) -> str:
        """The places of several examples, of which the first few are named."""
        more = f" and {len(indices) - _SHOWN} more" if len(indices) > _SHOWN else ""
        return "; ".join(self.where(index) for index in indices[:_SHOWN]) + more

    def select(self, indices: Sequence[int]) -> Part:
        """Some of the examples."""
        return Part(self.examples.select(indices), self.places, [self.rows[i] for i in indices])

    def without(self, indices: Collection[int]) -> Part:
        """All examples but these."""
        left_out = set(indices)
        return self.select([i for i in range(len(self.examples)) if i not in left_out])

    def holding(self, examples: datasets.Dataset) -> Part:
        """A part with the same rows and other columns."""
        return Part(examples, self.places, self.rows)

    def subset(self, limit: int | None, seed: int) -> Part:
        """At most `limit` examples, drawn by seed, in their order."""
        if limit is None or limit >= len(self.examples):
            return self
        return self.select(sorted(random.Random(seed).sample(range(len(self.examples)), limit)))

    def renamed(self, columns: Mapping[str, str]) -> Part:
        """The columns that a task needs, under its names.

        Args:
            columns: the task's name -> the data's.

        Raises:
            UserError: a column is missing, or is named twice.
        """
        names = list(columns.values())
        twice = [f"dataset.{ours}={theirs}" for ours, theirs in columns.items() if names.count(theirs) > 1]
        if twice:
            raise UserError(f"{' and '.join(twice)} name the same column")
        missing = [ours for ours, theirs in columns.items() if theirs not in self.examples.column_names]
        if missing:
            raise UserError(
                f"{self.name}: there is no column " + " or ".join(f'"{columns[ours]}"' for ours in missing)
                + f"; it has {', '.join(self.examples.column_names)}. Name the columns with "
                + " ".join(f"dataset.{ours}=COLUMN" for ours in missing)
            )  # fmt: skip
        table = self.examples.select_columns(names)
        # In two steps, because a name may be taken by another column.
        for to in ("_{}".format, str):
            table = table.rename_columns(dict(zip(table.column_names, map(to, columns), strict=True)))
        return self.holding(table)

    def ids(self, data_column: str | None) -> list[str]:
        """The ids of the examples, as text.

        Args:
            data_column: the name of the column `id` in the data, for messages; None: there is none, and the numbers of
                the rows are the ids.

        Raises:
            UserError: an example has no id.
        """
        if data_column is None:
            return [str(row) for row in self.rows]
        ids = arrow.table(self.examples, "id")["id"].to_pylist()
        without = next((i for i, id in enumerate(ids) if id is None or id == ""), None)
        if without is not None:
            raise UserError(f"{self.where(without)}: column {data_column}: the id is missing")
        return [str(id) for id in ids]

    def check_text(self, column: str, data_column: str, missing: bool = False) -> None:
        """Refuse a column that holds anything but text.

        Args:
            data_column: the column's name in the data, for messages.
            missing: values may be missing.

        Raises:
            UserError: with the rows.
        """
        values = arrow.table(self.examples, column)[column].to_pylist()
        bad = [i for i, value in enumerate(values) if not (isinstance(value, str) or (missing and value is None))]
        if bad:
            raise UserError(
                f"{self.where_all(bad)}: column {data_column}: {len(bad)} of {len(values)} values are not text, such "
                f"as {values[bad[0]]!r}"
            )


@dataclass
class Splits:
    """The splits of a source."""

    train: Part | None
    evaluation: dict[str, Part]
    """Name -> examples; the first is the main one. Empty if there is none."""
    source: str
    """A description for people, with the revision if known."""
    unused: list[str] = field(default_factory=list)
    """Files, or splits of the hub, that are in none of these splits."""
    others: Mapping[str, Part | Path] = field(default_factory=dict)
    """Those of them that `dataset.unlabelled` may name: name -> examples, or the file that has them."""

    @property
    def parts(self) -> list[Part]:
        """All splits, train first."""
        return [*([self.train] if self.train is not None else []), *self.evaluation.values()]

    @property
    def origin(self) -> str:
        """The files, or splits of the hub, that each split came from."""
        named = {"training": self.train, **self.evaluation}
        return "; ".join(f"{name}: {part.described}" for name, part in named.items() if part is not None)

    def mapped(self, function: Callable[[Part], Part]) -> Splits:
        """Splits with the results of a function, called for one after the other, train first."""
        train = function(self.train) if self.train is not None else None
        return replace(self, train=train, evaluation={name: function(part) for name, part in self.evaluation.items()})


def held_out(
    groups: Sequence[str], fraction: float, seed: int, strata: Sequence[Any] = ()
) -> tuple[list[int], list[int]]:
    """(rest, hold-out), indices of examples: whole groups, drawn by seed, until the hold-out has `fraction` of them.

    Args:
        groups: for each example the group that must not be on both sides, such as its paragraph.
        strata: for each example its class, of which the hold-out gets the same fraction, and the rest at least one
            group; none: all examples are alike.
    """
    members: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    drawn: dict[Any, list[str]] = {}
    for name in sorted(members):
        drawn.setdefault(min(strata[i] for i in members[name]) if strata else None, []).append(name)
    held: list[int] = []
    seen = 0
    for stratum in sorted(drawn):
        names = drawn[stratum]
        random.Random(seed).shuffle(names)
        seen += sum(len(members[name]) for name in names)
        left = 1 if len(drawn) > 1 else 0
        # Counted over all strata so far, because each has a fraction of an example too many or too few.
        while len(names) > left and len(held) < fraction * seen:
            held += members[names.pop()]
    return sorted(set(range(len(groups))) - set(held)), sorted(held)


def main_split(examples: datasets.Dataset) -> datasets.Dataset:
    """The evaluation examples of the first split, which the main metric is computed on."""
    if SPLIT not in examples.column_names:
        return examples
    splits = list(examples[SPLIT])
    return examples.select([i for i, split in enumerate(splits) if split == splits[0]])


def joined(evaluation: Mapping[str, datasets.Dataset]) -> datasets.Dataset:
    """All evaluation splits as one dataset: with several, ids begin with the split's name, and the column `split` holds
    it."""
    import datasets

    if len(evaluation) == 1:
        (only,) = evaluation.values()
        return only
    odd = [name for name in list(evaluation)[1:] if not _OF_METRICS.fullmatch(name)]
    if odd:
        raise UserError(
            f"dataset.evaluation_splits={list(evaluation)}: {odd[0]!r} becomes part of names of metrics, where MLflow "
            "takes letters, digits, blanks and _ - . only; give another part of the file's name, or rename it"
        )
    named = []
    for name, examples in evaluation.items():
        ids = [f"{name}-{id}" for id in examples["id"]]
        with_ids = examples.remove_columns("id").add_column("id", ids)  # type: ignore[call-arg]
        named.append(with_ids.add_column(SPLIT, [name] * len(ids)))  # type: ignore[call-arg]
    return datasets.concatenate_datasets(named)
