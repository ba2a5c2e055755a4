"""The report page: one HTML file with the table, the pictures and the details of runs, for readers without MLflow.

`python -m results report` writes it. It needs no network: pictures and style are embedded, and it has no scripts.
"""

from __future__ import annotations

import base64
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING

from results import columns, latency, pictures, tradeoff
from results.figures import rendered
from results.formats import html_table
from results.runs import Run, artifact, read

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

    from results.rows import Row

SECONDS = columns.seconds("")
TITLES = {"training": "Training", "layers": "Sparsity by layer", "updates": "What each mask update removed"}
VERSION = "version."  # the tags of package versions
STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; margin: 0 auto; max-width: 75rem;
       padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; } h3 { font-size: 1rem; }
.wide { overflow-x: auto; } .notes { padding-left: 1.2rem; color: #444; font-size: .9rem; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
thead th { border-bottom: 2px solid #888; } .number { text-align: right; } td.number { white-space: nowrap; }
th { max-width: 7.5rem; vertical-align: bottom; }
figure { margin: 0 0 1rem; } img { max-width: 100%; height: auto; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
details { border: 1px solid #ddd; border-radius: .3rem; padding: .4rem .8rem; margin: .5rem 0; }
summary { cursor: pointer; overflow-wrap: anywhere; } code, pre { font-size: .82rem; }
pre { overflow-x: auto; background: #f6f6f6; padding: .6rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; } dt { color: #555; }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; } }
"""


@dataclass
class Details:
    """What the report shows about a run in addition to the table."""

    run: Run
    name: str
    address: str | None
    """The address of its page in MLflow's UI; None unless the store is a server."""
    began: datetime
    command: str
    """The command line that repeats it."""
    yaml: str
    seconds: dict[str, float]
    """Wall-clock time by stage."""
    pictures: dict[str, Figure]


def details(client: MlflowClient, run_id: str) -> Details:
    """Reads the details of a run from the store."""
    logged = client.get_run(run_id)
    run = read(logged)
    assert isinstance(run, Run)  # it is in a row
    overrides = shlex.join((artifact(client, run_id, columns.OVERRIDES) or "").splitlines())
    return Details(
        run=run,
        name=logged.info.run_name or run_id,
        address=address(str(client.tracking_uri), logged.info.experiment_id, run_id),
        began=datetime.fromtimestamp(logged.info.start_time / 1000, UTC),
        command=f"python -m runner {overrides}".strip(),
        yaml=artifact(client, run_id, columns.CONFIG) or "not logged",
        seconds={k.removeprefix(SECONDS): v for k, v in logged.data.metrics.items() if k.startswith(SECONDS)},
        pictures=pictures.of_run(client, run_id),
    )


def address(uri: str, experiment_id: str, run_id: str) -> str | None:
    """The address of a run's page in MLflow's UI; None where the store is no server."""
    if not uri.startswith(("http://", "https://")):
        return None
    return f"{re.sub('//[^/@]*@', '//', uri).rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}"


def page(client: MlflowClient, rows: list[Row], notes: Iterable[str], title: str) -> str:
    """The whole page.

    Args:
        notes: the footnotes of the table.
        title: the heading, such as the experiment's name.
    """
    by_id = {run_id: details(client, run_id) for row in rows for run_id in row.runs}
    compared = [
        _figure(
            f"{model} on {dataset}: {columns.written(metric)} against sparsity", tradeoff.score_against_sparsity(group)
        )
        for (model, dataset, metric), group in tradeoff.comparisons(rows).items()
    ]
    fast = [
        _figure(
            f"{model} on {dataset}: {columns.written(metric)} against latency", latency.score_against_latency(group)
        )
        for (model, dataset, metric), group in latency.timed(rows).items()
    ]
    listed = html_table(rows, lambda row: f"#{anchor(row)}" if row.runs else None)
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<div class="wide">{listed}</div>',
        f'<ul class="notes">{"".join(f"<li>{escape(note)}</li>" for note in notes)}</ul>',
        f'<h2>Score against sparsity</h2><div class="pictures">{"".join(compared)}</div>' if compared else "",
        f'<h2>Score against latency</h2><div class="pictures">{"".join(fast)}</div>' if fast else "",
        "<h2>What was run</h2>",
        _compute(by_id.values()),
        *(_row(row, [by_id[run_id] for run_id in row.runs]) for row in rows if row.runs),
    ]
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _figure(caption: str, figure: Figure) -> str:
    # As an image: a label in it can then be no markup of this page.
    data = base64.b64encode(rendered(figure, "svg")).decode()
    return f'<figure><img alt="{escape(caption)}" src="data:image/svg+xml;base64,{data}"></figure>'


def _compute(every: Iterable[Details]) -> str:
    """A table of runs and hours by hardware, from which readers can estimate energy."""
    hours: dict[str, float] = {}
    runs: dict[str, int] = {}
    for details in every:
        tags = details.run.tags
        where = tags.get("hardware", "hardware not known")
        if tags.get("ranks", "1") != "1":
            where += f", {tags['ranks']} ranks"
        hours[where] = hours.get(where, 0.0) + sum(details.seconds.values()) / 3600
        runs[where] = runs.get(where, 0) + 1
    lines = "".join(
        f'<tr><td>{escape(where)}</td><td class="number">{runs[where]}</td><td class="number">{total:.2f}</td></tr>'
        for where, total in hours.items()
    )
    head = '<thead><tr><th>Hardware</th><th class="number">Runs</th><th class="number">Hours</th></tr></thead>'
    explanation = (
        "Wall-clock time of all stages of these runs. It excludes what an interrupted run did before, and what came "
        "from the cache (such as dense models that another run made)."
    )
    return f'<div class="wide"><table>{head}<tbody>{lines}</tbody></table></div><p>{explanation}</p>'


def _row(row: Row, runs: list[Details]) -> str:
    name = f"{row.model} on {row.dataset}, {row.pattern}"
    return f'<h3 id="{anchor(row)}">{escape(name)}</h3>{"".join(map(_run, runs))}'


def anchor(row: Row) -> str:
    """The id of a row's section on the page, for links."""
    return f"row-{row.runs[0]}"


def _run(details: Details) -> str:
    run, tags = details.run, details.run.tags
    commit = tags.get("mlflow.source.git.commit", "not known")
    dirty = ", with changes that were not committed" if tags.get("git.dirty") == "true" else ""
    versions = ", ".join(f"{k.removeprefix(VERSION)} {v}" for k, v in sorted(tags.items()) if k.startswith(VERSION))
    link = f'<a href="{escape(details.address)}">{run.run_id}</a>' if details.address else run.run_id
    stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in details.seconds.items())
    facts = {
        "MLflow run": link,
        "began": f"{details.began:%Y-%m-%d %H:%M} UTC",
        "command": f"<code>{escape(details.command)}</code>",
        "commit": escape(commit + dirty),
        "versions": escape(versions),
        "hardware": escape(tags.get("hardware", "not known")),
        "data": escape(tags.get("dataset.source", "not known")),
        "seconds": escape(stages),
    }
    listed = "".join(f"<dt>{key}</dt><dd>{value}</dd>" for key, value in facts.items())
    drawn = "".join(_figure(TITLES[key], figure) for key, figure in details.pictures.items())
    return (
        f"<details><summary>{escape(f'{details.name}, {columns.written(run.metric)}')}: dense {run.dense:.4f}, "
        f"sparse {run.sparse:.4f}</summary>"
        f'<dl>{listed}</dl><div class="pictures">{drawn}</div>'
        f"<details><summary>Configuration</summary><pre>{escape(details.yaml)}</pre></details></details>"
    )
