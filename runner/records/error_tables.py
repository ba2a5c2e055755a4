"""An error analysis as tables, in the formats that people and programs read."""

from __future__ import annotations

import html
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TextIO

from results import columns
from runner.records.error_analysis import Diagnosis
from runner.system.text_tables import show

_WIDEST = 160  # characters, if the output is no terminal


@dataclass
class Section:
    """A table with a title. All texts are plain: each format escapes them."""

    title: str
    header: list[str]
    rows: list[list[str]]
    numbers: int
    """Number of columns, counted from the last, that hold numbers."""


def headline(diagnosis: Diagnosis) -> list[str]:
    """The lines of the summary."""
    metric = columns.title(diagnosis.metric)
    return [
        f"{diagnosis.model} on {diagnosis.dataset}, {diagnosis.pattern}, seed {diagnosis.seed}",
        f"{metric}: dense {diagnosis.dense:.4f}, sparse {diagnosis.sparse:.4f}, change {diagnosis.change:+.4f}",
        f"{diagnosis.examples} examples: {diagnosis.lost} lost, {diagnosis.won} won, "
        f"{diagnosis.same} with the same score, {diagnosis.both_wrong} wrong in both",
    ]


def sections(diagnosis: Diagnosis) -> list[Section]:
    """The tables: one for each title of slices, then the examples."""
    tables = []
    for title, members in diagnosis.slices.items():
        rows = [
            [s.name, str(s.examples), f"{s.dense:.4f}", f"{s.sparse:.4f}", f"{s.change:+.4f}", f"{s.part:+.4f}"]
            for s in members
        ]
        header = [title, "Examples", "Dense", "Sparse", "Change", "Part of the whole change"]
        tables.append(Section(f"By {title[0].lower()}{title[1:]}", header, rows, 5))
    for word, count, members in (
        ("Lost", diagnosis.lost, diagnosis.most_lost),
        ("Won", diagnosis.won, diagnosis.most_won),
    ):
        if members:
            header = [*members[0].shown, "Dense answer", "Sparse answer", "Dense", "Sparse"]
            rows = [
                [*e.shown.values(), e.dense_answer, e.sparse_answer, f"{e.dense:.4f}", f"{e.sparse:.4f}"]
                for e in members
            ]
            tables.append(Section(f"{word}: {len(members)} of {count}, the largest changes first", header, rows, 2))
    return tables


def as_table(diagnosis: Diagnosis, stream: TextIO) -> None:
    """Tables for a terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=stream, highlight=False, color_system=None, markup=False)
    for line in headline(diagnosis):
        console.print(line, soft_wrap=True)
    for section in sections(diagnosis):
        table = Table(title=Text(section.title), title_justify="left", box=box.SIMPLE_HEAD)
        for at, name in enumerate(section.header):
            number = at >= len(section.header) - section.numbers
            table.add_column(Text(name), justify="right" if number else "left", no_wrap=number, overflow="fold")
        for row in section.rows:
            table.add_row(*map(Text, row))
        show(console, table, _WIDEST)


def as_markdown(diagnosis: Diagnosis, stream: TextIO) -> None:
    """Markdown for a page or an issue."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(map(escape, cells)) + " |"

    def escape(text: str) -> str:
        return re.sub(r"([\\`*_\[\]<>|#&~])", r"\\\1", " ".join(text.split()))

    print("\n".join(f"{escape(text)}  " for text in headline(diagnosis)), file=stream)
    for section in sections(diagnosis):
        left = len(section.header) - section.numbers
        rule = "|" + "---|" * left + "---:|" * section.numbers
        print(f"\n**{escape(section.title)}**\n", line(section.header), rule, sep="\n", file=stream)
        for row in section.rows:
            print(line(row), file=stream)


def as_json(diagnosis: Diagnosis, stream: TextIO) -> None:
    """JSON for a program."""
    json.dump(asdict(diagnosis), stream, indent=1, ensure_ascii=False)
    stream.write("\n")


_STYLE = (
    "body{font-family:sans-serif;margin:2em}table{border-collapse:collapse;margin-bottom:2em}"
    "th,td{border-bottom:1px solid #ccc;padding:.3em .8em;text-align:left;vertical-align:top}"
    ".n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}"
)


def as_html(diagnosis: Diagnosis, stream: TextIO) -> None:
    """A self-contained page, for MLflow's view of artifacts."""

    def row(tag: str, cells: Sequence[str], numbers: int) -> str:
        first = len(cells) - numbers
        return "".join(
            f"<{tag}{' class=n' if at >= first else ''}>{html.escape(text)}</{tag}>" for at, text in enumerate(cells)
        )

    title, *others = map(html.escape, headline(diagnosis))
    print("<!DOCTYPE html>", '<html lang="en"><head><meta charset="utf-8">', f"<title>{title}</title>",
          f"<style>{_STYLE}</style></head><body>", f"<h1>{title}</h1>", sep="\n", file=stream)  # fmt: skip
    print(*(f"<p>{line}</p>" for line in others), sep="\n", file=stream)
    for section in sections(diagnosis):
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


def text_of(diagnosis: Diagnosis, form: str) -> str:
    """The diagnosis as text, in one of FORMATS."""
    stream = io.StringIO()
    FORMATS[form](diagnosis, stream)
    return stream.getvalue()
