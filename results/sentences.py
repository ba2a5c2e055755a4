"""A sentence to quote for each row: what its pattern costs, against which dense model, how sure that is, and how fast
the pruned model is. A missing control or interval, a single seed and a part of the data are in the sentence too."""

from __future__ import annotations

from collections.abc import Sequence

from results import columns
from results.caveats import parts_used
from results.cells import percent
from results.rows import Row
from results.speed import Latency
from results.table import differences

_SHORT = {"float32": "fp32", "bfloat16": "bf16"}
_NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}


def of_rows(rows: Sequence[Row]) -> list[str]:
    """The sentences of the rows that have runs, in their order."""
    differs = differences(rows)
    return [sentence(row, differs(row)) for row in rows if row.runs]


def sentence(row: Row, differs: str = "") -> str:
    """The sentence on one row with runs.

    Points are hundredths of the metric. The change is of means over seeds, against the same-budget control where there
    is one, else against the dense model that was pruned.

    Args:
        differs: what distinguishes the row from others with its labels.
    """
    parts = [f"{_subject(row, f' ({differs})' if differs else '')} {_cost(row)}"]
    if row.latency is not None and not row.is_control:
        parts.append(_speed(row.latency))
    text = ", and ".join(parts)
    if part := _part(row):
        text += f"; {part}"
    return f"{text}.{_published(row)}"


def _subject(row: Row, differs: str) -> str:
    if row.is_control:
        return f"{row.model} on {row.dataset}{differs}, trained further without pruning,"
    zeros = "" if row.ratio is None else f" at {100 * row.ratio:.0f} %"
    layers = "" if row.student_layers is None else f", {row.student_layers}"
    return f"{row.model} on {row.dataset}: {row.pattern}{zeros}{layers}{differs}"


def _cost(row: Row) -> str:
    assert row.sparse_mean is not None and row.dense_mean is not None  # noqa: PT018  it has runs
    metric = columns.written(row.metric)
    if row.control is not None:
        reference, base, interval = "an equally trained dense model", row.control.mean, row.control.change_interval
    else:
        reference, base, interval = "the dense model it started from", row.dense_mean, row.change_interval
    change = 100 * (row.sparse_mean - base)
    bounds = None if interval is None else [100 * each for each in interval]
    if bounds == [0, 0]:
        return f"scores as {reference} does: no {_noun(row)[:-1]} changes its {metric}"
    known = _certainty(row)
    if bounds is not None and bounds[0] <= 0 <= bounds[1]:
        shown = _numbers([change, *bounds], signed=True)
        return (
            f"shows no clear difference in {metric} from {reference}: {shown[0]} points "
            f"({known}: {shown[1]} to {shown[2]})"
        )
    verb = "costs" if change < 0 else "gains"
    if bounds is None:
        (shown,) = _numbers([abs(change)])
        return f"{verb} {shown} points of {metric} against {reference} ({known})"
    low, high = sorted(bounds if change >= 0 else (-bounds[1], -bounds[0]))
    shown = _numbers([abs(change), low, high])
    return f"{verb} {shown[0]} points of {metric} ({known}: {shown[1]} to {shown[2]}) against {reference}"


def _numbers(values: list[float], signed: bool = False) -> list[str]:
    """The values with 1 decimal; with 2 if all are below 1, or if one that is not 0 would read 0.0."""
    vanish = any(0 < abs(value) < 0.05 for value in values)
    decimals = 2 if vanish or max(map(abs, values)) < 1 else 1
    return [f"{value:{'+' if signed else ''}z.{decimals}f}" for value in values]


def _certainty(row: Row) -> str:
    """What an interval covers, or why there is none."""
    interval = row.control.change_interval if row.control is not None else row.change_interval
    if interval is None:
        return "one seed, no interval" if len(row.seeds) == 1 else f"{_count(len(row.seeds))} seeds, no interval"
    return (
        f"95 %, one seed, over {_noun(row)} alone" if len(row.seeds) == 1 else f"95 %, {_count(len(row.seeds))} seeds"
    )


def _speed(latency: Latency) -> str:
    batch = "" if latency.batch == 1 else f", batches of {latency.batch}"
    threads = f"{_count(latency.threads)} thread{'' if latency.threads == 1 else 's'}"
    precision = _SHORT.get(latency.precision, latency.precision)
    setting = f"({precision}, {threads}, {latency.length} tokens{batch})"
    ratio = latency.ratio_to_best_dense
    if ratio is None:
        return f"takes {latency.ms:.1f} ms on {latency.cpu} {setting}"
    if ratio < 1:
        return f"runs at {ratio:.2f} of the speed of the best dense runtime on {latency.cpu} {setting}"
    return f"runs {ratio:.1f}x faster than the best dense runtime on {latency.cpu} {setting}"


def _part(row: Row) -> str:
    """Which part of the official splits was used, or what was scored instead; empty for all."""
    return " and ".join(parts_used(row, "scored", _noun(row)))


def _published(row: Row) -> str:
    """How the published figure compares; empty where there is none."""
    entry = row.published
    if entry is None or entry.drop is None:
        return ""
    recipe = (
        "" if row.recipe in (None, f"{row.dataset}-{row.model}") else f" Recipe: {row.recipe}, not the published one."
    )
    return f" Published: {percent(entry.drop)} of the best score, here {percent(row.drop_max)}.{recipe}"


def _noun(row: Row) -> str:
    return "questions" if "exact_match" in (row.metric, *row.sparse_others) else "examples"


def _count(number: int) -> str:
    return _NUMBERS.get(number, str(number))
