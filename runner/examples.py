"""The examples that a sparse model lost and won against the dense one, and of which kinds they are.

python -m runner.examples RUN [--lost 20] [--won 5] [--format table|markdown|json|html] [--output FILE]

RUN is a finished run's folder, or its id in MLflow, where examples.html and examples.json are added to the run.
"""

from __future__ import annotations

import argparse
import html
import io
import json
import logging
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import fsum
from pathlib import Path
from typing import Any, TextIO

from results import columns
from runner import tracking
from runner.data.task import Dataset
from runner.records import runs
from runner.records.runs import Run
from runner.system.errors import UserError, writing
from runner.tracking import Tracking

log = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds for which a server that does not answer is tried again: here somebody waits."""
RIGHT = "right answers"
_WIDEST = 160  # characters, where there is no terminal
_CLOSE = 1e-9  # sums of the same numbers in another order


@dataclass
class Compared:
    """An example and what the two models made of it. Scores are fractions."""

    id: str
    shown: dict[str, str]
    """See `runner.data.task.Dataset.shown`."""
    dense_answer: str
    sparse_answer: str
    dense: float
    sparse: float
    change: float
    """sparse - dense."""


@dataclass
class Kind:
    """The examples of one kind."""

    name: str
    examples: int
    dense: float
    """Mean score."""
    sparse: float
    change: float
    """sparse - dense."""
    part: float
    """Of the change of the whole score: the parts of all kinds sum up to it."""


@dataclass
class Diagnosis:
    """What became of the examples of a run. Each is counted once: lost, won, same or both_wrong."""

    run: str
    model: str
    dataset: str
    pattern: str
    seed: int
    metric: str
    """The main metric, or RIGHT where that is no mean over the examples."""
    dense: float
    sparse: float
    change: float
    """sparse - dense: the sum of all examples' changes over their number."""
    examples: int
    lost: int
    """The sparse model scores lower."""
    won: int
    """It scores higher."""
    same: int
    """Both score the same, above 0."""
    both_wrong: int
    """Both score 0."""
    kinds: dict[str, list[Kind]]
    """By what they are told apart."""
    most_lost: list[Compared]
    """The largest changes first, then by id."""
    most_won: list[Compared]


# --- what is compared ---------------------------------------------------------------------------------------


def diagnose(run: Run, task: Dataset, lost: int, won: int) -> Diagnosis:
    """Compare the two models of a run, example by example.

    Args:
        task: the run's dataset.
        lost, won: how many examples to show, at most.

    Raises:
        UserError: the run keeps too little, or the data are not those that it was scored on.
    """
    if run.result["sparse"] is None:
        raise UserError(f"{run.folder}: with prune=false there is no sparse model to compare with the dense one")
    try:
        examples = task.read(train=False)
    except UserError as error:
        raise runs.moved(run, error) from error
    if examples.evaluation_fingerprint != run.result["made_by"]["evaluation"]:
        raise UserError(
            f"dataset.path={task.path}: these are not the examples that the run was scored on; add "
            "dataset.path=PLACE to this command to name a place where they are"
        )
    rows = {str(row["id"]): row for row in task.rows(examples.evaluation)}
    every = compared(run, task, rows)
    metric, count = run.result["metric"], len(every)
    dense, sparse = (fsum(getattr(example, of) for example in every) / count for of in ("dense", "sparse"))
    is_mean = "statistics" not in _kept(run, columns.SCORES)
    for of, score in (("dense", dense), ("sparse", sparse)):
        if is_mean and abs(score - run.result[of][metric]) > _CLOSE:
            raise UserError(
                f"{run.folder / columns.SCORES}: its mean, {score:.6f}, is not the {of} {metric} of the run, "
                f"{run.result[of][metric]:.6f}: one of the two files was changed"
            )
    by_size = sorted(every, key=lambda example: (-abs(example.change), example.id))
    losers, winners = ([e for e in by_size if sign * e.change > 0] for sign in (-1, 1))
    wrong = sum(1 for e in every if e.dense == e.sparse == 0)
    return Diagnosis(
        run=str(run.folder),
        **{key: run.result[key] for key in ("model", "dataset", "pattern", "seed")},
        metric=metric if is_mean else RIGHT,
        dense=dense,
        sparse=sparse,
        change=sparse - dense,
        examples=count,
        lost=len(losers),
        won=len(winners),
        same=count - len(losers) - len(winners) - wrong,
        both_wrong=wrong,
        kinds=kinds(every, {id: task.kinds(row) for id, row in rows.items()}),
        most_lost=losers[:lost],
        most_won=winners[:won],
    )


def compared(run: Run, task: Dataset, rows: Mapping[str, Mapping[str, Any]]) -> list[Compared]:
    """All examples, in the order of the data."""
    scores, dense, sparse = (
        _kept(run, name) for name in (columns.SCORES, columns.DENSE_PREDICTIONS, columns.PREDICTIONS)
    )
    if not scores["dense"]:
        raise UserError(
            f"{run.folder}: {run.result['metric']} knows no right and wrong answers, so no example can be said to be "
            "lost or won"
        )
    of_each = dict(zip(scores["id"], zip(scores["dense"], scores["sparse"], strict=True), strict=True))
    for name, found in ((columns.SCORES, of_each), (columns.DENSE_PREDICTIONS, dense), (columns.PREDICTIONS, sparse)):
        # The scores are of the first evaluation split alone.
        if not (of_each.keys() if found is of_each else rows.keys()) <= found.keys() <= rows.keys():
            raise UserError(f"{run.folder / name}: its examples are not those of the run: the file was changed")
    return [
        Compared(
            id, task.shown(row), _text(dense[id]), _text(sparse[id]), *of_each[id], of_each[id][1] - of_each[id][0]
        )
        for id, row in rows.items()
        if id in of_each
    ]


def kinds(every: Sequence[Compared], of_each: Mapping[str, Mapping[str, str]]) -> dict[str, list[Kind]]:
    """The scores of each kind of example.

    Args:
        of_each: by id: by what examples are told apart -> the kind.
    """
    groups: defaultdict[str, defaultdict[str, list[Compared]]] = defaultdict(lambda: defaultdict(list))
    for example in every:
        for title, name in of_each[example.id].items():
            groups[title][name].append(example)
    return {
        title: [_kind(name, members[name], len(every)) for name in sorted(members, key=_natural)]
        for title, members in groups.items()
    }


def _kind(name: str, members: Sequence[Compared], count: int) -> Kind:
    dense, sparse = (fsum(getattr(e, of) for e in members) for of in ("dense", "sparse"))
    n = len(members)
    return Kind(name, n, dense / n, sparse / n, (sparse - dense) / n, (sparse - dense) / count)


def _natural(text: str) -> list[tuple[int, str]]:
    """A sort key in which "2 words" comes before "10 words"."""
    return [(int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", text)]


def _kept(run: Run, name: str) -> Any:
    file = run.folder / name
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}; run it again with force=true to make it") from error


def _text(answer: Any) -> str:
    return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)


# --- how it is shown ----------------------------------------------------------------------------------------


@dataclass
class Section:
    """A table with a title; all plain text."""

    title: str
    header: list[str]
    rows: list[list[str]]
    numbers: int
    """How many of the columns, counted from the last, are numbers."""


def headline(found: Diagnosis) -> list[str]:
    """The summary, in lines."""
    metric = columns.title(found.metric)
    return [
        f"{found.model} on {found.dataset}, {found.pattern}, seed {found.seed}",
        f"{metric}: dense {found.dense:.4f}, sparse {found.sparse:.4f}, change {found.change:+.4f}",
        f"{found.examples} examples: {found.lost} lost, {found.won} won, {found.same} with the same score, "
        f"{found.both_wrong} wrong in both",
    ]


def sections(found: Diagnosis) -> list[Section]:
    """The tables: one for each way to tell examples apart, then the examples."""
    out = []
    for title, members in found.kinds.items():
        rows = [
            [k.name, str(k.examples), f"{k.dense:.4f}", f"{k.sparse:.4f}", f"{k.change:+.4f}", f"{k.part:+.4f}"]
            for k in members
        ]
        header = [title, "Examples", "Dense", "Sparse", "Change", "Part of the whole change"]
        out.append(Section(f"By {title[0].lower()}{title[1:]}", header, rows, 5))
    for word, count, members in (("Lost", found.lost, found.most_lost), ("Won", found.won, found.most_won)):
        if members:
            header = [*members[0].shown, "Dense answer", "Sparse answer", "Dense", "Sparse"]
            rows = [
                [*e.shown.values(), e.dense_answer, e.sparse_answer, f"{e.dense:.4f}", f"{e.sparse:.4f}"]
                for e in members
            ]
            out.append(Section(f"{word}: {len(members)} of {count}, the largest changes first", header, rows, 2))
    return out


def as_table(found: Diagnosis, stream: TextIO) -> None:
    """For a terminal."""
    from rich import box
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    console = Console(file=stream, highlight=False, markup=False)
    for line in headline(found):
        console.print(line, soft_wrap=True)
    for section in sections(found):
        table = Table(title=Text(section.title), title_justify="left", box=box.SIMPLE_HEAD)
        for at, name in enumerate(section.header):
            number = at >= len(section.header) - section.numbers
            table.add_column(Text(name), justify="right" if number else "left", no_wrap=number, overflow="fold")
        for row in section.rows:
            table.add_row(*map(Text, row))
        if not console.is_terminal:  # a file or a pipe has no width to keep to
            wanted = Measurement.get(console, console.options.update(width=10_000), table).maximum
            console.width = min(max(80, wanted), _WIDEST)
        console.print(table)


def as_markdown(found: Diagnosis, stream: TextIO) -> None:
    """For a page or an issue."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(map(escape, cells)) + " |"

    def escape(text: str) -> str:
        return re.sub(r"([\\`*_\[\]<>|#&~])", r"\\\1", " ".join(text.split()))

    print("\n".join(f"{escape(text)}  " for text in headline(found)), file=stream)
    for section in sections(found):
        left = len(section.header) - section.numbers
        rule = "|" + "---|" * left + "---:|" * section.numbers
        print(f"\n**{escape(section.title)}**\n", line(section.header), rule, sep="\n", file=stream)
        for row in section.rows:
            print(line(row), file=stream)


def as_json(found: Diagnosis, stream: TextIO) -> None:
    """For a program."""
    json.dump(asdict(found), stream, indent=1, ensure_ascii=False)
    stream.write("\n")


_STYLE = (
    "body{font-family:sans-serif;margin:2em}table{border-collapse:collapse;margin-bottom:2em}"
    "th,td{border-bottom:1px solid #ccc;padding:.3em .8em;text-align:left;vertical-align:top}"
    ".n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}"
)


def as_html(found: Diagnosis, stream: TextIO) -> None:
    """A page without anything from elsewhere, for MLflow's view of artifacts."""

    def row(tag: str, cells: Sequence[str], numbers: int) -> str:
        first = len(cells) - numbers
        return "".join(
            f"<{tag}{' class=n' if at >= first else ''}>{html.escape(text)}</{tag}>" for at, text in enumerate(cells)
        )

    title, *others = map(html.escape, headline(found))
    print("<!DOCTYPE html>", '<html lang="en"><head><meta charset="utf-8">', f"<title>{title}</title>",
          f"<style>{_STYLE}</style></head><body>", f"<h1>{title}</h1>", sep="\n", file=stream)  # fmt: skip
    print(*(f"<p>{line}</p>" for line in others), sep="\n", file=stream)
    for section in sections(found):
        print(f"<h2>{html.escape(section.title)}</h2>", "<table>", file=stream)
        print(f"<thead><tr>{row('th', section.header, section.numbers)}</tr></thead>", "<tbody>", file=stream)
        for cells in section.rows:
            print(f"<tr>{row('td', cells, section.numbers)}</tr>", file=stream)
        print("</tbody></table>", file=stream)
    print("</body></html>", file=stream)


FORMATS: dict[str, Callable[[Diagnosis, TextIO], None]] = {
    "table": as_table,
    "markdown": as_markdown,
    "json": as_json,
    "html": as_html,
}


def text_of(found: Diagnosis, form: str) -> str:
    """The diagnosis in one of FORMATS."""
    stream = io.StringIO()
    FORMATS[form](found, stream)
    return stream.getvalue()


# --- the command line ---------------------------------------------------------------------------------------


def main(arguments: list[str]) -> None:
    """Show the examples of the command line's run, and add them to it in MLflow."""
    options = parse(arguments)
    from runner.system.process import set_up_process

    set_up_process()
    run = runs.find(options.run, Tracking(options.tracking_uri, patience=PATIENCE))
    experiment = runs.restored(run, runs.places(options.places)).experiment
    found = diagnose(run, experiment.dataset, options.lost, options.won)
    if options.output is None:
        FORMATS[options.format](found, sys.stdout)
    else:
        with writing(options.output):
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(text_of(found, options.format), encoding="utf-8")
    if options.log:
        where = replace(experiment.tracking, uri=options.tracking_uri or experiment.tracking.uri, patience=PATIENCE)
        _log(found, run, where)


def _log(found: Diagnosis, run: Run, where: Tracking) -> None:
    """Add it to the run's artifacts, if the store is there."""
    if run.run_id is None:
        log.warning("not added to the run in MLflow: it was not uploaded yet (python -m runner.upload %s)", run.folder)
        return
    texts = {columns.EXAMPLES_HTML: text_of(found, "html"), columns.EXAMPLES_JSON: text_of(found, "json")}
    try:
        tracking.add(where, run.run_id, texts, {})
    except UserError as error:
        log.warning("not added to the run in MLflow: %s", error)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m runner.examples", description="The examples that a sparse model lost and won"
    )
    parser.add_argument("run", metavar="RUN", help="the folder of a finished run, or its id in MLflow")
    parser.add_argument("places", nargs="*", metavar="KEY=PLACE", help="what has moved, such as dataset.path=FOLDER")
    parser.add_argument("--lost", type=_count, default=10, metavar="N", help="examples to show, at most (%(default)s)")
    parser.add_argument("--won", type=_count, default=10, metavar="N", help="the same (%(default)s)")
    parser.add_argument("--format", choices=FORMATS, default="table", help="(%(default)s)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write it there instead of printing it")
    parser.add_argument("--tracking-uri", metavar="URI", help="where the run is logged, if elsewhere than it was then")
    parser.add_argument("--no-log", dest="log", action="store_false", help="do not add it to the run in MLflow")
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is no number of examples")
    return int(text)


if __name__ == "__main__":
    from runner.system.process import exit_status

    sys.exit(exit_status(lambda: main(sys.argv[1:])))
