"""Rows that others published, from `published.csv` in this folder: scores are fractions, empty where not stated.

A score that is not called a mean or a maximum is in the column of the maximum, from which the drop was computed. Add a
line to that file to add a published row.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any

from results.rows import Published, Row, order

Labels = tuple[str, str, str]  # model, dataset, pattern

_NUMBERS = ("ratio", "dense_mean", "dense_max", "sparse_mean", "sparse_max", "drop")


@cache
def rows() -> dict[Labels, Published]:
    """The published rows, by their labels under our names."""
    text = files("results").joinpath("published.csv").read_text(encoding="utf-8")
    return {
        (line["model"], line["dataset"], line["pattern"]): _entry(line) for line in csv.DictReader(text.splitlines())
    }


def _entry(line: dict[str, str]) -> Published:
    numbers = {name: float(line[name]) if line[name] else None for name in _NUMBERS}
    return Published(metric=line["metric"], source=line["source"], **numbers)


def compare(ours: list[Row], wanted: Callable[[str, str, str], bool] = lambda *labels: True) -> list[Row]:
    """Our rows with the published ones of equal labels and metric, in the order of `rows.pool`.

    Args:
        wanted: takes (model, dataset, pattern); selects the published rows to list that we have no runs of.
    """
    matched = [_with_published(row) for row in ours]
    have = {_labels(row) for row in matched if row.published}
    lacking = [_without_runs(key, entry) for key, entry in rows().items() if key not in have and wanted(*key)]
    return sorted([*matched, *lacking], key=order)


def _labels(row: Row) -> Labels:
    return row.model, row.dataset, row.pattern


def _with_published(row: Row) -> Row:
    entry = rows().get(_labels(row))
    if entry is None or (row.metric, row.student_layers, row.holdout) != (entry.metric, None, None):
        return row
    difference = None if row.drop_max is None or entry.drop is None else row.drop_max - entry.drop
    return replace(row, published=replace(entry, difference=difference))


def _without_runs(labels: Labels, entry: Published) -> Row:
    nothing: list[Any] = [None] * 7  # ratio to drop_mean
    return Row(*labels, [], *nothing, metric=entry.metric, differs={}, runs=[], published=entry)
