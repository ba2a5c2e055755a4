"""The report page: one HTML file with the answer, the table, the pictures and the details of runs, for readers without
MLflow.

`python -m results report` writes it. It needs no network: pictures and style are embedded, and it has no scripts. The
page is report.html.jinja; sentences, tables, pictures and runs come in the order of the rows.
"""

from __future__ import annotations

import base64
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined

from results import columns, latency, pictures, sentences, table, tradeoff
from results.figures import rendered, slim
from results.progress import reported
from results.runs import Run, artifact, fetch, read

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import Run as LoggedRun

    from results.rows import Row

LIMIT = 12
"""Runs with pictures and configuration: these take most of the time and of the page."""
SECONDS = columns.seconds("")
TITLES = {
    "training": "Training",
    "score": "Score while it is pruned",
    "layers": "Sparsity by layer",
    "updates": "What each mask update removed",
}
VERSION = "version."  # the tags of package versions
_FIRST = 12  # sentences that the page opens with
_NAMED = 5  # commits or machines in a line
_UNKNOWN = "not known"


@dataclass(frozen=True)
class Picture:
    """A picture on the page."""

    caption: str
    svg: str
    """Base64 of the SVG file, shown as an image: a label in it can be no markup of the page."""


def page(
    client: MlflowClient,
    rows: Sequence[Row],
    notes: Iterable[str],
    title: str,
    logged: Iterable[LoggedRun] | None = None,
    limit: int = LIMIT,
) -> str:
    """The whole page.

    Args:
        notes: the footnotes of the table.
        title: the heading, such as the experiment's name.
        logged: the runs, if they were fetched before; None: those of all active experiments.
        limit: of how many runs it shows pictures and configuration: the first of each row, then the second ones. It
            has as many pictures of rows.
    """
    logged = fetch(client) if logged is None else logged
    by_id = {run.info.run_id: run for run in logged}
    ours = [row for row in rows if row.runs]
    by_seed = zip_longest(*(row.runs for row in ours))
    whole = [run_id for run_id in chain.from_iterable(by_seed) if run_id is not None][:limit]
    details = {run_id: _artifacts(client, by_id[run_id]) for run_id in reported(whole, "runs", len(whole))}
    shown = [by_id[run_id] for row in ours for run_id in row.runs]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("results").joinpath("report.html.jinja").read_text(encoding="utf-8"))
    uri, most = str(client.tracking_uri), _most(shown)
    sections = [
        {"anchor": anchor(row), "name": f"{row.model} on {row.dataset}, {row.pattern}",
         "runs": [_run(uri, by_id[run_id], details.get(run_id), most) for run_id in row.runs]}
        for row in ours
    ]  # fmt: skip
    return template.render(
        title=title,
        sentences=sentences.of_rows(rows),
        first=_FIRST,
        origin=_origin(shown),
        short=_grid(rows, wide=False),
        full=_grid(rows, wide=True),
        notes=list(notes),
        compared={
            "Score against sparsity": _compared(rows, tradeoff.comparisons, tradeoff.score_against_sparsity,
                                                "sparsity", limit),
            "Score against latency": _compared(rows, latency.timed, latency.score_against_latency, "latency", limit),
        },
        compute=_compute(shown),
        brief=None if len(whole) == len(shown) else f"Pictures, commands and configurations are those of {len(whole)} "
        f"of {len(shown)} runs, the first seeds of each row (--limit). MLflow has the others. Unless a run says "
        "otherwise:",
        most=most,
        sections=sections,
    )  # fmt: skip


def anchor(row: Row) -> str:
    """The id of a row's section on the page, for links."""
    return f"row-{row.runs[0][:12]}"


def address(uri: str, experiment_id: str, run_id: str) -> str | None:
    """The address of a run's page in MLflow's UI; None where the store is no server."""
    if not uri.startswith(("http://", "https://")):
        return None
    return f"{re.sub('//[^/@]*@', '//', uri).rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}"


def _grid(rows: Sequence[Row], wide: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Headers and lines of a table: the labels of a row in its first cell, an interval apart from its number."""
    layout = table.layout(list(rows), wide)
    labels = [column for column in layout if column.label]
    others = [column for column in layout if not column.label]
    headers = [{"text": ", ".join(column.header for column in labels).capitalize(), "numeric": False}]
    headers += [{"text": column.header, "numeric": column.numeric} for column in others]
    lines = []
    for row in rows:
        lines.append({
            "anchor": anchor(row) if row.runs and not wide else None,
            "labels": [column.cell(row) for column in labels],
            "cells": [_cell(column, row) for column in others],
        })  # fmt: skip
    return headers, lines


def _cell(column: table.Column, row: Row) -> tuple[str, str]:
    """The cell, and the interval behind it or an empty text."""
    text = column.cell(row)
    number, bracket, rest = text.partition(" [")
    return (number, f"[{rest}") if bracket and column.stacks else (text, "")


def _compared(
    rows: Sequence[Row],
    group: Callable[[Sequence[Row]], Mapping[tuple[str, str, str], list[Row]]],
    draw: Callable[[list[Row]], Figure],
    axis: str,
    limit: int,
) -> list[Picture]:
    """A picture for each model, `Row.scored_on` and metric, in the order of their rows."""
    order = {(row.model, row.scored_on, row.metric): at for at, row in reversed(list(enumerate(rows)))}
    groups = sorted(group(rows).items(), key=lambda item: order[item[0]])[:limit]
    return [
        _picture(f"{model} on {scored_on}: {columns.written(metric)} against {axis}", draw(of_picture))
        for (model, scored_on, metric), of_picture in reported(groups, axis, len(groups))
    ]


def _picture(caption: str, figure: Figure) -> Picture:
    return Picture(caption, base64.b64encode(slim(rendered(figure, "svg"))).decode())


def _origin(runs: Iterable[LoggedRun]) -> dict[str, str]:
    """When, by which commits and on which machines the runs were made."""
    runs = list(runs)
    days = sorted(f"{_began(run):%Y-%m-%d}" for run in runs)
    return {
        "Date": days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}",
        "Commit": _counted(_commit(run, short=True) for run in runs),
        "Machine": _counted(run.data.tags.get("hardware", _UNKNOWN) for run in runs),
        "Runs": str(len(runs)),
    }


def _counted(values: Iterable[str]) -> str:
    """The values, the most frequent first, with their numbers if there are several."""
    counts = Counter(values).most_common()
    if len(counts) == 1:
        return counts[0][0]
    more = [f"and {len(counts) - _NAMED} more"] if len(counts) > _NAMED else []
    named = [f"{value} ({count} run{'' if count == 1 else 's'})" for value, count in counts[:_NAMED]]
    return "; ".join([*named, *more])


def _compute(runs: Iterable[LoggedRun]) -> list[tuple[str, int, float]]:
    """Hardware, runs and hours, from which readers can estimate energy."""
    hours: defaultdict[str, list[float]] = defaultdict(list)
    for run in runs:
        tags = run.data.tags
        ranks = f", {tags['ranks']} ranks" if tags.get("ranks", "1") != "1" else ""
        hours[tags.get("hardware", f"hardware {_UNKNOWN}") + ranks].append(sum(_seconds(run).values()) / 3600)
    return [(where, len(each), sum(each)) for where, each in hours.items()]


def _seconds(run: LoggedRun) -> dict[str, float]:
    """Wall-clock time by stage."""
    return {key.removeprefix(SECONDS): value for key, value in run.data.metrics.items() if key.startswith(SECONDS)}


def _began(run: LoggedRun) -> datetime:
    return datetime.fromtimestamp(run.info.start_time / 1000, UTC)


def _commit(run: LoggedRun, short: bool = False) -> str:
    commit = run.data.tags.get("mlflow.source.git.commit")
    if commit is None:
        return _UNKNOWN
    dirty = ", with changes that were not committed" if run.data.tags.get("git.dirty") == "true" else ""
    return commit[: 10 if short else None] + dirty


def _artifacts(client: MlflowClient, logged: LoggedRun) -> dict[str, Any]:
    """What the page shows of a run's artifacts: pictures, configuration and the command that repeats it."""
    run_id, place = logged.info.run_id, logged.info.artifact_uri
    overrides = shlex.join((artifact(client, run_id, columns.OVERRIDES, place) or "").splitlines())
    return {
        "command": f"python -m runner {overrides}".strip(),
        "yaml": artifact(client, run_id, columns.CONFIG, place) or "not logged",
        "pictures": [_picture(TITLES.get(key, key), figure) for key, figure in pictures.of_run(client, run_id).items()],
    }


def _most(shown: Iterable[LoggedRun]) -> dict[str, str]:
    """The most frequent value of what many runs share."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for run in shown:
        for name, value in _shared(run).items():
            counts[name][value] += 1
    return {name: values.most_common(1)[0][0] for name, values in counts.items()}


def _shared(logged: LoggedRun) -> dict[str, str]:
    """Facts that are mostly those of the other runs."""
    tags = logged.data.tags
    versions = (f"{k.removeprefix(VERSION)} {v}" for k, v in sorted(tags.items()) if k.startswith(VERSION))
    return {
        "commit": _commit(logged),
        "versions": ", ".join(versions) or _UNKNOWN,
        "hardware": tags.get("hardware", _UNKNOWN),
        "data": tags.get("dataset.source", _UNKNOWN),
    }


def _run(uri: str, logged: LoggedRun, artifacts: Mapping[str, Any] | None, most: Mapping[str, str]) -> dict[str, Any]:
    """What the page shows of a run; without its artifacts only the facts that are not `most` of the runs'."""
    run, info = read(logged), logged.info
    assert isinstance(run, Run)  # it is in a row
    name = f"{info.run_name or info.run_id}, {columns.written(run.metric)}"
    shared = {key: value for key, value in _shared(logged).items() if artifacts is not None or value != most[key]}
    return {"command": None, "yaml": None, "pictures": [], **(artifacts or {})} | {
        "summary": f"{name}: dense {run.dense:.4f}, sparse {run.sparse:.4f}",
        "address": address(uri, info.experiment_id, info.run_id),
        "facts": {
            "MLflow run": info.run_id,
            "began": f"{_began(logged):%Y-%m-%d %H:%M} UTC",
            **shared,
            "seconds": ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in _seconds(logged).items()),
        },
    }
