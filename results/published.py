"""Rows that others published, from `published.csv` beside this file: scores are fractions, empty where not stated.

A single score, where no mean and maximum are told apart, stands under the maximum, from which the drop was computed.
A published row more is a line more in that file.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib.resources import files

from results.collect import Published, Row, order

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
    """Our rows with the published ones of the same labels and metric beside them, in the order of `collect.pool`.

    Args:
        wanted: of (model, dataset, pattern), whether a published row is listed of which we have no runs.
    """
    found = {labels: entry for labels, entry in rows().items() if wanted(*labels)}
    beside = [_beside(row) for row in ours]
    have = {labels_of(row) for row in beside if row.published}
    lacking = [_without_runs(labels, entry) for labels, entry in found.items() if labels not in have]
    return sorted([*beside, *lacking], key=order)


def labels_of(row: Row) -> Labels:
    """What a published row is found by."""
    return row.model, row.dataset, row.pattern


def _beside(row: Row) -> Row:
    entry = rows().get(labels_of(row))
    return replace(row, published=entry) if entry and entry.metric == row.metric else row


def _without_runs(labels: Labels, entry: Published) -> Row:
    model, dataset, pattern = labels
    return Row(
        model=model,
        dataset=dataset,
        pattern=pattern,
        seeds=[],
        ratio=None,
        dense_mean=None,
        dense_max=None,
        sparse_mean=None,
        sparse_max=None,
        drop_max=None,
        drop_mean=None,
        metric=entry.metric,
        differs={},
        runs=[],
        published=entry,
    )
